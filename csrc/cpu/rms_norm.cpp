// RMSNorm, forward and backward, of x = input or input + residual.
//
//   r = 1 / sqrt(mean(x^2) + eps)           w = offset + weight           y = x r w
//   dx = r (dy w - x r^2 mean(dy w x)) + grad_x
//   dweight = sum over rows of dy x r
#include "cpu/rms_norm.h"

#include <cmath>
#include <type_traits>

#include "cpu/integers.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kSumBlock = 1024;  // elements summed in the accumulation type; more in double
constexpr int64_t kMaxPrefetchBytes = 64
                                      << 10;  // a longer row would leave the cache before its use
// dweight is summed in at most this many blocks of rows. The number does not depend on the number
// of threads, and so neither does the result.
constexpr int64_t kMaxRowBlocks = 128;
constexpr int64_t kStripRows = 64;  // rows of a block that are added to one sum

// f(T{}, X{}) with the types of the input and of x.
template <class F>
void with_types(DType input, DType x, F&& f) {
  with_element_type(input, [&](auto t) {
    if (input == x) return f(t, t);
    if constexpr (sizeof(t) == 2) f(t, float{});
  });
}

// offset + weight, in the accumulation type.
template <class A>
const A* wide_weight(const RmsNormArgs& a, A* scratch) {
  if (std::is_same_v<A, float> && a.weight_dtype == DType::f32 && a.offset == 0)
    return static_cast<const A*>(a.weight);
  with_element_type(a.weight_dtype, [&](auto t) {
    using W = decltype(t);
    const W* from = static_cast<const W*>(a.weight);
    if constexpr (std::is_same_v<acc_t<W>, A>) {
      const A offset = static_cast<A>(a.offset);
      for_pieces<A, 1>(a.features, [&](auto piece, int) __attribute__((always_inline)) {
        piece.store(scratch, piece.load(from) + offset);
      });
    } else {
      for (int64_t i = 0; i < a.features; ++i)
        scratch[i] = static_cast<A>(a.offset) + static_cast<A>(load_one(from + i));
    }
  });
  return scratch;
}

// Prefetches the next row in the second pass over this one: the first pass waits for memory, the
// second does not use it.
class Prefetch {
 public:
  Prefetch(const RmsNormArgs& a, int64_t row, int64_t end, size_t size) {
    if (row + 1 == end || a.features * static_cast<int64_t>(size) > kMaxPrefetchBytes) return;
    const RowTensor& first = a.input.data ? a.input : a.x;
    const RowTensor& second = a.input.data ? a.residual : a.grad_y;
    first_ = distance(a.shape, first, row);
    second_ = second.data ? distance(a.shape, second, row) : 0;
  }

  // Element `at` of the next row of each of the two tensors; the second may be null.
  template <class U, class V>
  LF_INLINE void element(int64_t at, const U* first, const V* second) const {
    __builtin_prefetch(first + first_ + at, 0, 2);
    if (second) __builtin_prefetch(second + second_ + at, 0, 2);
  }

 private:
  static int64_t distance(const RowShape& shape, const RowTensor& rows, int64_t row) {
    return row_pointer<const char>(shape, rows, row + 1) -
           row_pointer<const char>(shape, rows, row);
  }

  int64_t first_ = 0, second_ = 0;
};

// The sum of f(piece, begin) over a row, where f returns a vector for a piece that starts at
// begin + piece.at.
template <class A, class F>
LF_INLINE double row_sum(int64_t n, F&& f) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    vec<A> sum[4] = {};
    for_pieces<A, 4>(min(n - begin, kSumBlock),
                     [&](auto piece, int k)
                         __attribute__((always_inline)) { sum[k] += f(piece, begin); });
    total += reduce_add<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  return total;
}

// --- forward ---------------------------------------------------------------------------------

template <bool kStream, class T, class X>
void forward_row(const T* input, const X* residual, X* x, T* y, const acc_t<T>* weight, int64_t n,
                 double eps, acc_t<T>* rstd, const Prefetch& prefetch) {
  using A = acc_t<T>;
  constexpr int64_t kKept = (16 << 10) / sizeof(A);
  alignas(64) A kept[kKept];  // input + residual, so that the second pass need not read x
  const bool keep = residual && n <= kKept;
  const auto square = [](vec<A> v) { return v * v; };
  const auto add = [&](auto piece, int64_t begin) __attribute__((always_inline)) {
    return piece.load(input + begin) + piece.load(residual + begin);
  };
  double sum;
  if (keep) {
    sum = row_sum<A>(n, [&](auto piece, int64_t begin) __attribute__((always_inline)) {
      const vec<A> v = add(piece, begin);
      piece.template put<kStream>(x + begin, v);
      piece.store(kept + begin, rounded<X>(v));
      return square(rounded<X>(v));
    });
  } else if (residual) {
    sum = row_sum<A>(n, [&](auto piece, int64_t begin) __attribute__((always_inline)) {
      const vec<A> v = add(piece, begin);
      piece.store(x + begin, v);
      return square(rounded<X>(v));
    });
  } else {
    sum = row_sum<A>(n, [&](auto piece, int64_t begin) __attribute__((always_inline)) {
      return square(piece.load(input + begin));
    });
  }
  const A r = static_cast<A>(1 / std::sqrt(sum / static_cast<double>(n) + eps));
  *rstd = r;
  const auto scale = [&](const auto* from) {
    for_pieces<A, 2>(n, [&](auto piece, int) __attribute__((always_inline)) {
      prefetch.element(piece.at, input, residual);
      piece.template put<kStream>(y, piece.load(from) * r * piece.load(weight));
    });
  };
  keep ? scale(static_cast<const A*>(kept)) : residual ? scale(x) : scale(input);
}

template <class T, class X>
void forward_as(const RmsNormArgs& a) {
  using A = acc_t<T>;
  A* scratch = static_cast<A*>(thread_scratch(static_cast<size_t>(a.features) * sizeof(A)));
  const A* weight = wide_weight<A>(a, scratch);
  const bool stream = worth_streaming(a.rows * a.features * static_cast<int64_t>(sizeof(T))) &&
                      rows_are_aligned<T>(a.shape, a.y) &&
                      (!a.x.data || rows_are_aligned<X>(a.shape, a.x));
  const auto rows = [&](auto may_stream, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* input = row_pointer<const T>(a.shape, a.input, row);
      const X* residual = nullptr;
      X* x = nullptr;
      if (a.residual.data) {
        residual = row_pointer<const X>(a.shape, a.residual, row);
        x = row_pointer<X>(a.shape, a.x, row);
      }
      forward_row<decltype(may_stream)::value>(
          input, residual, x, row_pointer<T>(a.shape, a.y, row), weight, a.features, a.eps,
          static_cast<A*>(a.rstd) + row, Prefetch(a, row, end, sizeof(X)));
    }
  };
  const int64_t per_item = a.features < kItemElements ? kItemElements / (a.features + 1) + 1 : 1;
  parallel_items(ceil_div(a.rows, per_item), true, [&](int64_t item) {
    const int64_t begin = item * per_item;
    const int64_t end = min(a.rows, begin + per_item);
    if (!stream) return rows(std::false_type{}, begin, end);
    rows(std::bool_constant<kCanStream>{}, begin, end);
    stream_fence();
  });
}

// --- backward --------------------------------------------------------------------------------

// Writes dx of one row, and adds its part of dweight to `sums`. dx, sums and grad_x may be null.
template <bool kStream, class T, class X>
void backward_row(const X* x, const T* grad_y, const X* grad_x, X* dx, const acc_t<T>* weight,
                  acc_t<T>* sums, int64_t n, acc_t<T> r, const Prefetch& prefetch) {
  using A = acc_t<T>;
  A mean = 0;
  if (dx) {
    const double dot = row_sum<A>(n, [&](auto piece, int64_t begin) __attribute__((always_inline)) {
      if (grad_x) __builtin_prefetch(grad_x + begin + piece.at, 0, 2);
      return piece.load(grad_y + begin) * piece.load(weight + begin) * piece.load(x + begin);
    });
    const double r2 = static_cast<double>(r) * static_cast<double>(r);
    mean = static_cast<A>(dot / static_cast<double>(n) * r2);
  }
  for_pieces<A, 2>(n, [&](auto piece, int) __attribute__((always_inline)) {
    prefetch.element(piece.at, x, grad_y);
    const vec<A> v = piece.load(x), g = piece.load(grad_y);
    if (dx) {
      vec<A> d = (g * piece.load(weight) - v * mean) * r;
      if (grad_x) d += piece.load(grad_x);
      piece.template put<kStream>(dx, d);
    }
    if (sums) piece.store(sums, piece.load(static_cast<const A*>(sums)) + g * (v * r));
  });
}

template <class T, class X>
class Backward {
 public:
  using A = acc_t<T>;

  explicit Backward(const RmsNormArgs& a) : a_(a) {}

  void run() {
    const int64_t elements = a_.rows * a_.features;
    blocks_ = max(1, min(elements / kItemElements, min(a_.rows, kMaxRowBlocks)));
    block_rows_ = ceil_div(a_.rows, blocks_);

    A *widened = nullptr, *totals = nullptr, *strips = nullptr;
    const auto carve = [&](Carver scratch) {
      widened = scratch.take<A>(a_.features);
      if (a_.dweight) totals = scratch.take<A>(blocks_ * a_.features);
      if (a_.dweight && block_rows_ > kStripRows) strips = scratch.take<A>(blocks_ * a_.features);
      return scratch.used();
    };
    carve(Carver(thread_scratch(carve(Carver()))));
    weight_ = wide_weight<A>(a_, widened);
    stream_ = a_.dx.data && rows_are_aligned<X>(a_.shape, a_.dx) &&
              worth_streaming(elements * static_cast<int64_t>(sizeof(X)));
    parallel_items(blocks_, true, [&](int64_t block) {
      const int64_t at = block * a_.features;
      run_block(block, totals ? totals + at : nullptr, strips ? strips + at : nullptr);
    });
    if (a_.dweight) sum_blocks(totals);
  }

 private:
  void run_block(int64_t block, A* total, A* strip) const {
    const int64_t begin = block * block_rows_;
    const int64_t end = min(a_.rows, begin + block_rows_);
    const size_t bytes = static_cast<size_t>(a_.features) * sizeof(A);
    A* sums = strip ? strip : total;
    if (total) std::memset(total, 0, bytes);
    for (int64_t row = begin; row < end; ++row) {
      if (strip && (row - begin) % kStripRows == 0) {
        if (row > begin) add(total, strip, 0, a_.features);
        std::memset(strip, 0, bytes);
      }
      run_row(row, end, sums);
    }
    if (stream_) stream_fence();
    if (strip && end > begin) add(total, strip, 0, a_.features);
  }

  void run_row(int64_t row, int64_t end, A* sums) const {
    const X* x = row_pointer<const X>(a_.shape, a_.x, row);
    const T* grad_y = row_pointer<const T>(a_.shape, a_.grad_y, row);
    const X* grad_x = a_.grad_x.data ? row_pointer<const X>(a_.shape, a_.grad_x, row) : nullptr;
    X* dx = a_.dx.data ? row_pointer<X>(a_.shape, a_.dx, row) : nullptr;
    const A r = static_cast<const A*>(a_.rstd)[row];
    const Prefetch prefetch(a_, row, end, sizeof(X));
    if (stream_) {
      backward_row<kCanStream>(x, grad_y, grad_x, dx, weight_, sums, a_.features, r, prefetch);
    } else {
      backward_row<false>(x, grad_y, grad_x, dx, weight_, sums, a_.features, r, prefetch);
    }
  }

  // to += from, for some columns.
  static void add(A* to, const A* from, int64_t first, int64_t count) {
    for_pieces<A, 2>(count, [&](auto piece, int) __attribute__((always_inline)) {
      piece.store(to + first,
                  piece.load(static_cast<const A*>(to) + first) + piece.load(from + first));
    });
  }

  // dweight: the sums of the blocks, added pairwise.
  void sum_blocks(A* totals) const {
    constexpr int64_t kColumns = 512;
    const int64_t n = a_.features;
    const bool worth_threads = blocks_ * n >= kItemElements;
    parallel_items(ceil_div(n, kColumns), worth_threads, [&](int64_t item) {
      const int64_t first = item * kColumns, count = min(n - first, kColumns);
      for (int64_t left = blocks_; left > 1; left = (left + 1) / 2)
        for (int64_t i = (left + 1) / 2; i < left; ++i)
          add(totals + (i - (left + 1) / 2) * n, totals + i * n, first, count);
      with_element_type(a_.weight_dtype, [&](auto t) {
        using W = decltype(t);
        W* out = static_cast<W*>(a_.dweight);
        for (int64_t i = first; i < first + count; ++i)
          store_one(out + i, static_cast<acc_t<W>>(totals[i]));
      });
    });
  }

  const RmsNormArgs& a_;
  const A* weight_ = nullptr;
  int64_t blocks_ = 1, block_rows_ = 1;
  bool stream_ = false;
};

}  // namespace

void rms_norm_forward(const RmsNormArgs& a) {
  with_types(a.input.dtype, a.residual.data ? a.x.dtype : a.input.dtype,
             [&](auto t, auto x) { forward_as<decltype(t), decltype(x)>(a); });
}

void rms_norm_backward(const RmsNormArgs& a) {
  with_types(a.grad_y.dtype, a.x.dtype,
             [&](auto t, auto x) { Backward<decltype(t), decltype(x)>(a).run(); });
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
