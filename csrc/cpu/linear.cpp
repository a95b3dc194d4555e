// The linear map of a few rows, as in decoding: as fast as the weights can be read.
//
// Each thread takes a stretch of the weights' rows and reads it from end to end once. As many
// products of a row of a weight and a row of the input as a register has lanes are summed side by
// side, and their lanes added together at the end. Hardware prefetchers lose several rows that are
// read side by side, so the rows that come next are asked for. Each product is summed in one order,
// whatever stands beside it: a row of the input gets the same bits in any company.
#include "cpu/linear.h"

#include "cpu/gemm.h"
#include "cpu/linear_tiles.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Rows of the input in a tile, at most.
template <int lanes>
constexpr int kMaxRows = lanes < 4 ? lanes : 4;
constexpr int64_t kAhead = 16;             // rows of the weight between request and use
constexpr int64_t kWorthThread = 1 << 15;  // bytes of weight

// How numbers of T are multiplied: in X, the input's form, kStep at a time.
template <class T>
struct Wide {
  using A = acc_t<T>;
  using X = A;
  static constexpr int64_t kStep = kLanes<A>;
  static X from(T x) { return load_one(&x); }
  static LF_INLINE vec<A> fma(vec<A> c, const X* x, const T* w) {
    return load(x) * load_acc(w) + c;
  }
  static LF_INLINE vec<A> fma_n(vec<A> c, const X* x, const T* w, int64_t n) {
    return load(x) * load_acc_n(w, n, A(0)) + c;
  }
};

#if defined(__AVX512BF16__)
struct Pairs {
  using A = float;
  using X = bf16;
  static constexpr int64_t kStep = 32;
  static X from(bf16 x) { return x; }
  static LF_INLINE vec<float> fma(vec<float> c, const X* x, const bf16* w) {
    return Bf16::fma(c, _mm512_loadu_si512(x), _mm512_loadu_si512(w));
  }
  static LF_INLINE vec<float> fma_n(vec<float> c, const X* x, const bf16* w, int64_t n) {
    const auto lanes = static_cast<__mmask32>((uint64_t{1} << n) - 1);
    return Bf16::fma(c, _mm512_loadu_si512(x), _mm512_maskz_loadu_epi16(lanes, w));
  }
};
#endif

// W rows of a weight from `row` on, of which `there` exist, with R rows of the input, `width`
// numbers apart, of which `wanted` are. `out`: the weight's part of a row, rows `outer` apart.
template <class How, class T, int R, int W, bool kFetch>
void tile(const LinearWeight& weight, int64_t inner, const typename How::X* input, int64_t width,
          T* out, int64_t outer, int64_t wanted, int64_t row, int64_t there) {
  using A = typename How::A;
  constexpr int64_t step = How::kStep;
  const T* rows[W];  // those that do not exist repeat the last one
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    rows[i] =
        static_cast<const T*>(weight.data) + (row + (i < there ? i : there - 1)) * weight.stride;
  const int64_t ahead = kAhead * weight.stride;
  vec<A> sums[R * W];
#pragma GCC unroll 16
  for (int i = 0; i < R * W; ++i) sums[i] = vec<A>{};
  int64_t k = 0;
  for (; k + step <= inner; k += step)
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if constexpr (kFetch) __builtin_prefetch(rows[i] + ahead + k, 0, 2);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        sums[r * W + i] = How::fma(sums[r * W + i], input + r * width + k, rows[i] + k);
    }
  if (k < inner)
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        sums[r * W + i] =
            How::fma_n(sums[r * W + i], input + r * width + k, rows[i] + k, inner - k);
  A found[R * W];
  store(found, reduce_add_each<A>(sums));
  const T* bias = static_cast<const T*>(weight.bias);
  for (int64_t r = 0; r < wanted; ++r)
    for (int64_t i = 0; i < there; ++i)
      store_one(out + r * outer + row + i,
                found[r * W + i] + (bias ? load_one(bias + row + i) : A(0)));
}

// Rows [begin, end) of a weight with all rows of the input.
template <class How, class T>
void stretch(const LinearArgs& a, const LinearWeight& weight, const typename How::X* input,
             int64_t width, T* out, int64_t outer, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<typename How::A>;
  const auto pass = [&](auto count) {
    constexpr int R = decltype(count)::value, W = lanes / R;
    const auto run = [&](int64_t r, int64_t row, auto fetch) {
      const int64_t left = a.rows - r, there = end - row;
      tile<How, T, R, W, decltype(fetch)::value>(weight, a.inner, input + r * width, width,
                                                 out + r * outer, outer, left < R ? left : R, row,
                                                 there < W ? there : W);
    };
    for (int64_t row = begin; row < end; row += W) {
      run(0, row, std::true_type{});
      for (int64_t r = R; r < a.rows; r += R) run(r, row, std::false_type{});
    }
  };
  if (a.rows == 1) return pass(std::integral_constant<int, 1>{});
  if (a.rows == 2) return pass(std::integral_constant<int, 2>{});
  pass(std::integral_constant<int, kMaxRows<lanes>>{});
}

// f(weight, its part of the first row of the output, first row, last row + 1) for the rows of all
// weights together, in pieces for the threads. `outer`: of all weights.
template <class T, class F>
void for_weights(const LinearArgs& a, int64_t outer, F&& f) {
  const int64_t row_bytes = a.inner * static_cast<int64_t>(sizeof(T)) + 1;
  parallel_ranges(outer, kWorthThread / row_bytes + 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // row of all weights together that this one begins with
    for (int i = 0; i < a.count; ++i) {
      const LinearWeight& weight = a.weights[i];
      const int64_t from = begin > first ? begin - first : 0;
      const int64_t to = end - first < weight.outer ? end - first : weight.outer;
      if (from < to) f(weight, static_cast<T*>(a.out) + first, from, to);
      first += weight.outer;
    }
  });
}

int64_t outer_of(const LinearArgs& a) {
  int64_t outer = 0;
  for (int i = 0; i < a.count; ++i) outer += a.weights[i].outer;
  return outer;
}

template <class How, class T>
void linear_by(const LinearArgs& a) {
  using X = typename How::X;
  // The input, rows and ends of rows padded by zeros.
  const int64_t width = (a.inner + How::kStep - 1) / How::kStep * How::kStep;
  constexpr int64_t most = kMaxRows<kLanes<typename How::A>>;
  const int64_t rows = (a.rows + most - 1) / most * most;
  auto* input = static_cast<X*>(thread_scratch(static_cast<size_t>(rows * width) * sizeof(X)));
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* from = static_cast<const T*>(a.input) + r * a.inner;
    X* to = input + r * width;
    for (int64_t k = 0; k < a.inner; ++k) to[k] = How::from(from[k]);
    for (int64_t k = a.inner; k < width; ++k) to[k] = X{};
  }
  for (int64_t k = a.rows * width; k < rows * width; ++k) input[k] = X{};
  const int64_t outer = outer_of(a);
  for_weights<T>(a, outer, [&](const LinearWeight& weight, T* out, int64_t begin, int64_t end) {
    stretch<How, T>(a, weight, input, width, out, outer, begin, end);
  });
}

#if defined(__AMX_BF16__)
void linear_by_tiles(const LinearArgs& a) {
  const int64_t steps = (a.inner + kTileNumbers - 1) / kTileNumbers;
  const int64_t blocks = (a.rows + kTile - 1) / kTile;
  const TiledInput input =
      tile_input(a, static_cast<uint32_t*>(thread_scratch(static_cast<size_t>(steps * blocks) *
                                                          kTile * kTile * sizeof(uint32_t))));
  const int64_t outer = outer_of(a);
  for_weights<bf16>(a, outer,
                    [&](const LinearWeight& weight, bf16* out, int64_t begin, int64_t end) {
                      stretch_of_tiles(a, weight, input, out, outer, begin, end);
                    });
}
#endif

}  // namespace

void linear(const LinearArgs& a) {
  switch (a.dtype) {
    case DType::f64:
      return linear_by<Wide<double>, double>(a);
    case DType::f32:
      return linear_by<Wide<float>, float>(a);
    case DType::bf16:
#if defined(__AMX_BF16__)
      return linear_by_tiles(a);
#elif defined(__AVX512BF16__)
      return linear_by<Pairs, bf16>(a);
#else
      return linear_by<Wide<bf16>, bf16>(a);
#endif
    case DType::f16:
      return linear_by<Wide<f16>, f16>(a);
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
