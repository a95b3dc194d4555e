// exp and tanh over vectors.
//
// float: polynomials fitted for this file (Chebyshev, error below half a unit in the last place
// before rounding). double: the C library, one lane at a time; accuracy is its purpose.
#pragma once

#include <cmath>

#include "cpu/simd.h"

// Whether a product and a sum can be one operation with one rounding.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define LF_FMA 1
#endif

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr float kLog2e = 1.44269504088896341f, kLog2eLow = 1.925963033500e-8f;

// c0 x^n + c1 x^(n-1) + ..., by Horner's rule.
template <class... Coefficients>
LF_INLINE vec<float> polynomial(vec<float> x, float c0, Coefficients... c) {
  vec<float> p = set1(c0);
  ((p = p * x + c), ...);
  return p;
}

// e^x. NaN stays NaN, +inf stays +inf; below -87 the result is 0 (no subnormals).
LF_INLINE vec<float> vexp(vec<float> x) {
  typedef int32_t vec_i32 __attribute__((vector_size(kVecBytes)));
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440054690583e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer

  const vec<float> clamped = x > 88.8f ? set1(88.8f) : x;  // 88.8: e^x is infinite
  const vec<float> shifted = clamped * kLog2e + kRound;
  const vec<float> n = shifted - kRound;
  const vec<float> r = (clamped - n * kLn2High) - n * kLn2Low;
  vec<float> p =
      polynomial(r, 0.00139261835877f, 0.00836317905272f, 0.0416665546172f, 0.166665769897f, 0.5f);
  p = (p * r) * r + r + 1.0f;
  // 2^n as 2 * 2^(n-1), so that n = 128 does not overflow before the product does.
  const vec_i32 bits = ((vec_i32)shifted - 0x4b400000 + 126) << 23;
  const vec<float> result = (p + p) * (vec<float>)bits;
  return x < -87.0f ? vec<float>{} : result;
}

LF_INLINE vec<double> vexp(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// 2^x for x in [-1/2, 1/2].
LF_INLINE vec<float> exp2_polynomial(vec<float> x) {
  return polynomial(x, 0.00015328594599850476f, 0.001339098671451211f, 0.009618501178920269f,
                    0.05550359562039375f, 0.24022647738456726f, 0.6931471824645996f, 1.0f);
}

#if defined(LF_FMA)
// Added to n, a float below 2^22: leaves the exponent of 2^n, bias included, in the low bits.
constexpr float kRoundToExponent = 12582912.0f + 127.0f;  // 1.5 * 2^23, and the bias

// p * 2^n where `shifted` is n + kRoundToExponent; 0 if x, whose exponential this is, is so small
// that the result would be subnormal.
LF_INLINE vec<float> scale_by_exponent(vec<float> p, vec<float> shifted, vec<float> x) {
  typedef uint32_t vec_u32 __attribute__((vector_size(kVecBytes)));
  const vec<float> result = p * (vec<float>)((vec_u32)shifted << 23);
  return x < -87.0f ? vec<float>{} : result;
}
#endif

// e^x for softmax: vexp with half the instructions. x must be below 88; NaN stays NaN, -inf gives
// 0.
LF_INLINE vec<float> vexp_softmax(vec<float> x) {
#if defined(LF_FMA)
  const vec<float> shifted = x * kLog2e + kRoundToExponent;
  const vec<float> r = x * kLog2eLow + (x * kLog2e - (shifted - kRoundToExponent));
  return scale_by_exponent(exp2_polynomial(r), shifted, x);
#else
  return vexp(x);
#endif
}
LF_INLINE vec<double> vexp_softmax(vec<double> x) { return vexp(x); }

// vexp_softmax for results that are rounded to bfloat16 or summed in float: relative error 1e-7.
LF_INLINE vec<float> vexp_coarse(vec<float> x) {
#if defined(LF_FMA)
  const vec<float> shifted = x * kLog2e + kRoundToExponent;
  const vec<float> r = x * kLog2e - (shifted - kRoundToExponent);
  const vec<float> p = polynomial(r, 0.001326473313f, 0.009671512991f, 0.05550733581f,
                                  0.2402224243f, 0.6931470037f, 1.0f);
  return scale_by_exponent(p, shifted, x);
#else
  return vexp(x);
#endif
}

LF_INLINE vec<float> vtanh(vec<float> x) {
  const vec<float> u = x * x;
  const vec<float> p = polynomial(u, 0.00237076561265f, -0.00841007077388f, 0.0217883219871f,
                                  -0.0539615517798f, 0.133333128669f, -0.333333332312f);
  const vec<float> small = (p * u) * x + x;
  const vec<float> magnitude = x < 0.0f ? -x : x;
  const vec<float> large = 1.0f - 2.0f / (vexp(magnitude + magnitude) + 1.0f);
  const vec<float> signed_large = x < 0.0f ? -large : large;
  return u < 0.36f ? small : signed_large;  // NaN fails the comparison; `large` is NaN too
}

LF_INLINE vec<double> vtanh(vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::tanh(x[i]);
  return x;
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
