// Products of bfloat16 numbers by instructions of their own: vdpbf16ps on x86, bfdot and bfmmla on
// Arm.
//
// vdpbf16ps and bfdot add a0 b0 + a1 b1, a product of pairs, to each sum. bfmmla multiplies two
// rows of four numbers with two columns of four, and adds to each of the four sums what two bfdot
// would, with the same bits: the first pair's product, then the second's. bfdot rounds a pair's
// sum, then adds it; both times to odd, and both treat subnormals as zero. vdpbf16ps adds one
// product after the other, rounds to nearest, and treats subnormals likewise.
#pragma once

#include "cpu/simd.h"

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define LF_BF16_PRODUCTS 1

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

#if defined(__AVX512BF16__)

using Pairs = __m512i;  // a pair in each lane of a vec<float>

LF_INLINE vec<float> add_product(vec<float> c, Pairs a, Pairs b) {
  return (vec<float>)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
LF_INLINE Pairs load_pairs(const void* p) { return _mm512_loadu_si512(p); }
// The first n bfloat16 numbers from p on, then zeros.
LF_INLINE Pairs load_pairs(const void* p, int64_t n) {
  if (n >= 2 * kLanes<float>) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << n) - 1, p);
}
LF_INLINE Pairs repeat_pair(int32_t pair) { return _mm512_set1_epi32(pair); }
// Pairs of a number of a and one of b, of the first (second) half of each quarter.
LF_INLINE Pairs pair_low(Pairs a, Pairs b) { return _mm512_unpacklo_epi16(a, b); }
LF_INLINE Pairs pair_high(Pairs a, Pairs b) { return _mm512_unpackhi_epi16(a, b); }

struct Bf16 {
  using acc = float;
  using raw = uint16_t;
  using elem = uint32_t;
  static constexpr int kPack = 2;
  static LF_INLINE vec<float> fma(vec<float> c, const elem* a, vec<float> b) {
    return add_product(c, repeat_pair(static_cast<int>(*a)), (Pairs)b);
  }
};

// Steps whose first (second) numbers are those of `low` (`high`).
LF_INLINE vec<float> make_pairs(vec_u16 low, vec_u16 high) {
  const __m512i first = _mm512_cvtepu16_epi32((__m256i)low);
  return (vec<float>)_mm512_or_si512(first, (__m512i)widen(bf16{}, high));
}

// out[lane] = the step of that lane's numbers of two rows.
LF_INLINE void store_steps(const vec_u16* rows, uint32_t* out) {
  store(reinterpret_cast<float*>(out), make_pairs(rows[0], rows[1]));
}

#else

using Pairs = uint16x8_t;

LF_INLINE vec<float> add_product(vec<float> c, Pairs a, Pairs b) {
  return (vec<float>)vbfdotq_f32((float32x4_t)c, vreinterpretq_bf16_u16(a),
                                 vreinterpretq_bf16_u16(b));
}
LF_INLINE Pairs load_pairs(const void* p) { return vld1q_u16(static_cast<const uint16_t*>(p)); }
LF_INLINE Pairs load_pairs(const void* p, int64_t n) {
  if (n >= 2 * kLanes<float>) return load_pairs(p);
  uint16_t part[2 * kLanes<float>] = {};
  std::memcpy(part, p, static_cast<size_t>(n) * sizeof *part);
  return load_pairs(part);
}
LF_INLINE Pairs repeat_pair(int32_t pair) { return vreinterpretq_u16_s32(vdupq_n_s32(pair)); }
LF_INLINE Pairs pair_low(Pairs a, Pairs b) { return vzip1q_u16(a, b); }
LF_INLINE Pairs pair_high(Pairs a, Pairs b) { return vzip2q_u16(a, b); }

// A register holds one step of two rows (of A) or columns (of B): see microkernel_bfmmla.h.
struct Bf16 {
  using acc = float;
  using raw = uint16_t;
  using elem = uint64_t;
  static constexpr int kPack = 4;
};

// out[lane] = the step of that lane's numbers of four rows.
LF_INLINE void store_steps(const vec_u16* rows, uint64_t* out) {
  const auto pairs = [](vec_u16 a, vec_u16 b) LF_LAMBDA {
    const uint16x8_t first = vcombine_u16((uint16x4_t)a, vdup_n_u16(0));
    return vreinterpretq_u32_u16(vzip1q_u16(first, vcombine_u16((uint16x4_t)b, vdup_n_u16(0))));
  };
  const uint32x4_t low = pairs(rows[0], rows[1]), high = pairs(rows[2], rows[3]);
  vst1q_u64(out, vreinterpretq_u64_u32(vzip1q_u32(low, high)));
  vst1q_u64(out + 2, vreinterpretq_u64_u32(vzip2q_u32(low, high)));
}

#endif

// Products of pairs of numbers with rows in place (see WideningFma), as they are.
struct PairFma {
  using acc = float;
  using elem = uint16_t;
  static constexpr int64_t kStep = 2 * kLanes<float>;
  static elem pack(bf16 x) { return x.bits; }
  static LF_INLINE vec<float> fma(vec<float> c, const elem* a, const void* b) {
    return add_product(c, load_pairs(a), load_pairs(b));
  }
  // Only the first n numbers of both: those after them may be NaN.
  static LF_INLINE vec<float> fma_n(vec<float> c, const elem* a, const void* b, int64_t n) {
    return add_product(c, load_pairs(a, n), load_pairs(b, n));
  }
};

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
