// The linear map of a few rows, as in decoding: as fast as the weights can be read.
//
// Each thread takes a stretch of the weight's rows and reads it from end to end once: hardware
// prefetchers follow one stream of addresses, but lose several rows that are read side by side
// (twice slower, measured). A row is multiplied by all rows of the input, which stay in the cache.
#include "cpu/linear.h"

#include "cpu/gemm.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int kMaxRows = 4;                // of the input at a time
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

// Rows [begin, end) of the weight with R rows of the input, `width` numbers apart.
template <class How, class T, int R>
void rows_of(const LinearArgs& a, const typename How::X* input, int64_t width, T* out,
             int64_t begin, int64_t end) {
  using A = typename How::A;
  constexpr int kChains = R == 1 ? 2 : 1;
  constexpr int64_t step = How::kStep;
  const T* bias = static_cast<const T*>(a.bias);
  for (int64_t row = begin; row < end; ++row) {
    const T* w = static_cast<const T*>(a.weight) + row * a.weight_stride;
    vec<A> sums[R][kChains] = {};
    int64_t k = 0;
    for (; k + kChains * step <= a.inner; k += kChains * step)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < kChains; ++c)
          sums[r][c] = How::fma(sums[r][c], input + r * width + k + c * step, w + k + c * step);
    for (; k < a.inner; k += step) {
      const int64_t n = a.inner - k < step ? a.inner - k : step;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        sums[r][0] = n == step ? How::fma(sums[r][0], input + r * width + k, w + k)
                               : How::fma_n(sums[r][0], input + r * width + k, w + k, n);
    }
    const A shift = bias ? load_one(bias + row) : A(0);
    for (int r = 0; r < R; ++r) {
      vec<A> sum = sums[r][0];
      if constexpr (kChains == 2) sum += sums[r][1];
      store_one(out + r * a.outer + row, reduce_add<A>(sum) + shift);
    }
  }
}

template <class How, class T>
void linear_by(const LinearArgs& a) {
  using X = typename How::X;
  const int64_t width = (a.inner + How::kStep - 1) / How::kStep * How::kStep;
  auto* input = static_cast<X*>(
      thread_scratch(static_cast<size_t>(a.rows * width) * sizeof(X)));  // padded by zeros
  for (int64_t r = 0; r < a.rows; ++r) {
    const T* from = static_cast<const T*>(a.input) + r * a.inner;
    X* to = input + r * width;
    for (int64_t k = 0; k < a.inner; ++k) to[k] = How::from(from[k]);
    for (int64_t k = a.inner; k < width; ++k) to[k] = X{};
  }
  const int64_t row_bytes = a.inner * static_cast<int64_t>(sizeof(T)) + 1;
  parallel_ranges(a.outer, kWorthThread / row_bytes + 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < a.rows;) {
      const int64_t left = a.rows - r;
      const auto take = [&](auto count) {
        constexpr int R = decltype(count)::value;
        rows_of<How, T, R>(a, input + r * width, width, static_cast<T*>(a.out) + r * a.outer, begin,
                           end);
        r += R;
      };
      if (left >= kMaxRows) {
        take(std::integral_constant<int, kMaxRows>{});
      } else if (left >= 2) {
        take(std::integral_constant<int, 2>{});
      } else {
        take(std::integral_constant<int, 1>{});
      }
    }
  });
}

}  // namespace

void linear(const LinearArgs& a) {
  switch (a.dtype) {
    case DType::f64:
      return linear_by<Wide<double>, double>(a);
    case DType::f32:
      return linear_by<Wide<float>, float>(a);
    case DType::bf16:
#if defined(__AVX512BF16__)
      return linear_by<Pairs, bf16>(a);
#else
      return linear_by<Wide<bf16>, bf16>(a);
#endif
    case DType::f16:
      return linear_by<Wide<f16>, f16>(a);
  }
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
