// Vectors of one register, written once for every instruction set.
//
// vec<float> and vec<double> are compiler vector extensions (GCC and Clang), so + - * / and
// comparisons are ordinary expressions and a*b+c contracts to a fused multiply-add. Only what
// the extensions cannot say (16-bit conversions, selection by maximum) has intrinsics.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVecRegisters = 32;
#else
constexpr int kVecRegisters = 16;
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVecBytes)));
};
template <class T>
using vec = typename VecOf<T>::type;

// Number of T in a register.
template <class T>
constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(T));

typedef uint16_t vec_u16 __attribute__((vector_size(kVecBytes / 2)));  // lanes of a vec<float>

template <class T>
LF_INLINE vec<T> set1(T x) {
  return x - vec<T>{};
}

template <class T>
LF_INLINE vec<T> load(const T* p) {
  vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
LF_INLINE void store(T* p, vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// Larger of a and b; b where either is NaN (the x86 rule), so a NaN in `b` survives.
LF_INLINE vec<float> vmax(vec<float> a, vec<float> b) {
#if defined(__AVX512F__)
  return (vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
LF_INLINE vec<double> vmax(vec<double> a, vec<double> b) { return a > b ? a : b; }

// Reductions over the lanes, always in the same order: the upper half onto the lower half.
template <class T, int N>
struct Lanes {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N, class F>
LF_INLINE T fold(typename Lanes<T, N>::type v, F f) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    typename Lanes<T, N / 2>::type half[2];
    std::memcpy(half, &v, sizeof v);
    return fold<T, N / 2>(f(half[0], half[1]), f);
  }
}
template <class T>
LF_INLINE T reduce_add(vec<T> v) {
  return fold<T, kLanes<T>>(v, [](auto a, auto b) LF_LAMBDA { return a + b; });
}
template <class T>
LF_INLINE T reduce_max(vec<T> v) {
  return fold<T, kLanes<T>>(v, [](auto a, auto b) LF_LAMBDA { return a > b ? a : b; });
}

// --- 16-bit floats -------------------------------------------------------------------------

// GCC makes twice the instructions of __builtin_convertvector between 16 and 32 bits.
LF_INLINE vec<float> widen(bf16, vec_u16 bits) {
#if defined(__AVX512F__)
  return (vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)bits), 16);
#elif defined(__AVX2__)
  return (vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
#elif defined(__aarch64__)
  return (vec<float>)vshll_n_u16((uint16x4_t)bits, 16);
#else
  typedef uint32_t vec_u32 __attribute__((vector_size(kVecBytes)));
  return (vec<float>)(__builtin_convertvector(bits, vec_u32) << 16);
#endif
}

LF_INLINE vec_u16 narrow(bf16, vec<float> v) {  // round to nearest even; NaN stays NaN
#if defined(__AVX512BF16__)
  return (vec_u16)_mm512_cvtneps_pbh((__m512)v);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  return (vec_u16)vcvt_bf16_f32((float32x4_t)v);
#else
  typedef uint32_t vec_u32 __attribute__((vector_size(kVecBytes)));
  const vec_u32 u = (vec_u32)v;
  const vec_u32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vec_u32 nan = (u >> 16) | 0x40u;
  const vec_u32 bits = v == v ? rounded : nan;
#if defined(__AVX512F__)
  return (vec_u16)_mm512_cvtepi32_epi16((__m512i)bits);
#elif defined(__AVX2__)
  return (vec_u16)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)bits),
                                   _mm256_extracti128_si256((__m256i)bits, 1));
#else
  return __builtin_convertvector(bits, vec_u16);
#endif
#endif
}

LF_INLINE float widen_one(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu, mantissa = x.bits & 0x3ffu;
  float value;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    uint32_t u;
    std::memcpy(&u, &value, 4);
    u |= sign;
    std::memcpy(&value, &u, 4);
    return value;
  }
  const uint32_t u = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
  std::memcpy(&value, &u, 4);
  return value;
}

LF_INLINE uint16_t narrow_one_f16(float value) {  // round to nearest even
  uint32_t u;
  std::memcpy(&u, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (u >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (u < 0x38800000u) {                        // subnormal: let the addition round
    float magnitude;
    std::memcpy(&magnitude, &u, 4);
    magnitude += 0.5f;  // 0.5 has a unit in the last place of 2^-24, the subnormal step
    std::memcpy(&u, &magnitude, 4);
    return static_cast<uint16_t>(sign | (u - 0x3f000000u));
  }
  u += 0xc8000fffu + ((u >> 13) & 1u);  // rebias by -112 and round
  return static_cast<uint16_t>(sign | (u >> 13));
}

LF_INLINE vec<float> widen(f16, vec_u16 bits) {
#if defined(__AVX512F__)
  return (vec<float>)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
  return (vec<float>)_mm256_cvtph_ps((__m128i)bits);
#elif defined(__aarch64__)
  return (vec<float>)vcvt_f32_f16((float16x4_t)bits);
#else
  vec<float> v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = widen_one(f16{bits[i]});
  return v;
#endif
}

LF_INLINE vec_u16 narrow(f16, vec<float> v) {
#if defined(__AVX512F__)
  return (vec_u16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (vec_u16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
  return (vec_u16)vcvt_f16_f32((float32x4_t)v);
#else
  vec_u16 bits;
  for (int i = 0; i < kLanes<float>; ++i) bits[i] = narrow_one_f16(v[i]);
  return bits;
#endif
}

// --- load and store with conversion to and from the accumulation type ------------------

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
// float for float, bf16 and f16; double for double.
template <class T>
using acc_t = typename AccOf<T>::type;

LF_INLINE vec<float> load_acc(const float* p) { return load(p); }
LF_INLINE vec<double> load_acc(const double* p) { return load(p); }
template <class T>
LF_INLINE vec<float> load_acc(const T* p) {
  vec_u16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return widen(T{}, bits);
}

LF_INLINE void store_acc(float* p, vec<float> v) { store(p, v); }
LF_INLINE void store_acc(double* p, vec<double> v) { store(p, v); }
template <class T>
LF_INLINE void store_acc(T* p, vec<float> v) {
  const vec_u16 bits = narrow(T{}, v);
  std::memcpy(p, &bits, sizeof bits);
}

// The first n lanes only (0 < n <= kLanes); the other lanes of a load hold `fill`.
template <class T>
LF_INLINE vec<acc_t<T>> load_acc_n(const T* p, int64_t n, acc_t<T> fill) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << n) - 1;
  const vec<acc_t<T>> fills = set1<acc_t<T>>(fill);
  if constexpr (sizeof(T) == 8) {
    return (vec<acc_t<T>>)_mm512_mask_loadu_pd((__m512d)fills, static_cast<__mmask8>(mask), p);
  } else if constexpr (sizeof(T) == 4) {
    return (vec<acc_t<T>>)_mm512_mask_loadu_ps((__m512)fills, static_cast<__mmask16>(mask), p);
  } else {
    const auto lanes = static_cast<__mmask16>(mask);
    const vec<float> v = widen(T{}, (vec_u16)_mm256_maskz_loadu_epi16(lanes, p));
    return (vec<float>)_mm512_mask_mov_ps((__m512)fills, lanes, (__m512)v);
  }
#else
  T buffer[kLanes<acc_t<T>>] = {};
  std::memcpy(static_cast<void*>(buffer), p, static_cast<size_t>(n) * sizeof(T));
  vec<acc_t<T>> v = load_acc(buffer);
  for (int64_t i = n; i < kLanes<acc_t<T>>; ++i) v[i] = fill;
  return v;
#endif
}
template <class T>
LF_INLINE void store_acc_n(T* p, vec<acc_t<T>> v, int64_t n) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 8) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), (__m512d)v);
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)v);
  } else {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), (__m256i)narrow(T{}, v));
  }
#else
  T buffer[kLanes<acc_t<T>>];
  store_acc(buffer, v);
  std::memcpy(static_cast<void*>(p), buffer, static_cast<size_t>(n) * sizeof(T));
#endif
}

// One element, converted.
template <class T>
LF_INLINE acc_t<T> load_one(const T* p) {
  return load_acc_n(p, 1, acc_t<T>(0))[0];
}
LF_INLINE float load_one(const float* p) { return *p; }
LF_INLINE double load_one(const double* p) { return *p; }
template <class T>
LF_INLINE void store_one(T* p, acc_t<T> x) {
  store_acc_n(p, set1<acc_t<T>>(x), 1);
}
LF_INLINE void store_one(float* p, float x) { *p = x; }
LF_INLINE void store_one(double* p, double x) { *p = x; }

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
