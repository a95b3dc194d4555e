// The linear map of a few rows, as in decoding: as fast as the weights can be read.
//
// Each thread takes a range of the weights' rows and reads it once, from end to end
// (matmul/few_rows.h). An element of the output does not depend on the other rows of the input.
#include "cpu/linear.h"

#include "cpu/matmul/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kThreadBytes = 1 << 15;  // of weight that are worth a thread

int64_t total_outer(const LinearArgs& a) {
  int64_t outer = 0;
  for (int i = 0; i < a.count; ++i) outer += a.weights[i].outer;
  return outer;
}

// Writes elements of one weight's part of the output, with the bias.
template <class T>
struct OutputWriter {
  using A = acc_t<T>;
  T* out;         // the weight's part of row 0
  int64_t outer;  // from row to row
  const T* bias;  // or null

  LF_INLINE void operator()(int64_t row, int64_t column, A x) const {
    store_one(out + row * outer + column, x + (bias ? load_one(bias + column) : A(0)));
  }
  // n elements from `column` on.
  LF_INLINE void operator()(int64_t row, int64_t column, vec<A> x, int64_t n) const {
    const vec<A> added = bias ? load_acc_n(bias + column, n, A(0)) : vec<A>{};
    store_acc_n(out + row * outer + column, x + added, n);
  }
};

// f(weight, writer of its part of the output, first row, last row + 1) for the rows of all weights
// together, in ranges for the threads.
template <class T, class F>
void for_weight_rows(const LinearArgs& a, F&& f) {
  const int64_t outer = total_outer(a);
  const int64_t row_bytes = a.inner * static_cast<int64_t>(sizeof(T)) + 1;
  parallel_ranges(outer, kThreadBytes / row_bytes + 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // row of all weights together that this one begins with
    for (int i = 0; i < a.count; ++i) {
      const LinearWeight& weight = a.weights[i];
      const int64_t from = max(begin - first, 0), to = min(end - first, weight.outer);
      if (from < to)
        f(RowsInPlace<T>{static_cast<const T*>(weight.data), weight.stride, weight.outer},
          OutputWriter<T>{static_cast<T*>(a.out) + first, outer,
                          static_cast<const T*>(weight.bias)},
          from, to);
      first += weight.outer;
    }
  });
}

template <class Fma, class T>
void linear_of(const LinearArgs& a) {
  using E = typename Fma::elem;
  const int64_t width = round_up(a.inner, Fma::kStep);
  const int64_t padded_rows = round_up(a.rows, kMaxFewRows<Fma>);
  auto* packed = static_cast<E*>(thread_scratch(bytes_of(padded_rows * width, sizeof(E))));
  pack_few_rows<Fma>(static_cast<const T*>(a.input), a.inner, a.rows, a.inner, padded_rows, width,
                     packed);
  const FewRows<Fma> input{packed, a.rows, width};
  for_weight_rows<T>(
      a, [&](RowsInPlace<T> weight, const OutputWriter<T>& writer, int64_t begin, int64_t end) {
        multiply_few_rows(input, weight, a.inner, begin, end, writer);
      });
}

#if defined(__AMX_BF16__)
void linear_of_tiles(const LinearArgs& a) {
  const int64_t size = few_row_tiles_size(a.rows, a.inner);
  auto* packed = static_cast<uint32_t*>(thread_scratch(bytes_of(size, sizeof(uint32_t))));
  const FewRowTiles input =
      pack_few_row_tiles(static_cast<const bf16*>(a.input), a.inner, a.rows, a.inner, packed);
  for_weight_rows<bf16>(
      a, [&](RowsInPlace<bf16> weight, const OutputWriter<bf16>& writer, int64_t begin,
             int64_t end) { multiply_few_rows_amx(input, weight, a.inner, begin, end, writer); });
}
#endif

}  // namespace

void linear(const LinearArgs& a) {
  switch (a.dtype) {
    case DType::f64:
      return linear_of<WideningFma<double>, double>(a);
    case DType::f32:
      return linear_of<WideningFma<float>, float>(a);
    case DType::bf16:
#if defined(__AMX_BF16__)
      return linear_of_tiles(a);
#elif defined(LF_BF16_PRODUCTS)
      return linear_of<PairFma, bf16>(a);
#else
      return linear_of<WideningFma<bf16>, bf16>(a);
#endif
    case DType::f16:
      return linear_of<WideningFma<f16>, f16>(a);
  }
}

int64_t linear_rows(DType dtype) {
  constexpr int64_t lanes = kLanes<float>;
  if (lanes < 8) return 4;
#if defined(__AMX_BF16__)
  if (dtype == DType::bf16) return 64;
#endif
  return dtype == DType::f32 || dtype == DType::f64 ? 2 * lanes : 8;
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
