// The register tile of microkernel.h for bfloat16 on Arm, by bfmmla.
//
// A register of A holds four numbers of each of two rows, a register of B four of each of two
// columns, and a register of sums their 2 x 2 products. Sums are put in the order of rows at the
// end.
#pragma once

#include "cpu/matmul/operands.h"

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Step k of the rows p and q, which are the same or side by side or apart.
LF_INLINE bfloat16x8_t two_rows(const uint64_t* p, const uint64_t* q) {
  return vreinterpretq_bf16_u64(vcombine_u64(vld1_u64(p), vld1_u64(q)));
}

// The registers of A are held, those of B pass by: of 32 registers 24 hold sums, at most 4 A.
template <int Rows, int Vecs, bool kAdjacent>
LF_INLINE void bfmmla_tile_of(int64_t kk, const uint64_t* a, int64_t a_row, int64_t a_step,
                              const uint64_t* b, int64_t b_step, float* c, int64_t c_row,
                              bool accumulate) {
  static_assert(Rows == 1 || Rows % 2 == 0, "rows in pairs");
  constexpr int pairs = (Rows + 1) / 2;
  const int64_t second = Rows == 1 ? 0 : a_row;
  float32x4_t sum[pairs][2 * Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < pairs; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * Vecs; ++v) sum[r][v] = vdupq_n_f32(0);
  for (int64_t k = 0; k < kk; ++k, a += a_step, b += b_step) {
    bfloat16x8_t left[pairs];
#pragma GCC unroll 8
    for (int r = 0; r < pairs; ++r) {
      const uint64_t* p = a + 2 * r * a_row;
      left[r] = kAdjacent ? vreinterpretq_bf16_u64(vld1q_u64(p)) : two_rows(p, p + second);
    }
#pragma GCC unroll 8
    for (int v = 0; v < 2 * Vecs; ++v) {
      const bfloat16x8_t right = vreinterpretq_bf16_u64(vld1q_u64(b + 2 * v));
#pragma GCC unroll 8
      for (int r = 0; r < pairs; ++r) sum[r][v] = vbfmmlaq_f32(sum[r][v], left[r], right);
    }
  }
  const auto put = [&](int row, int v, float64x2_t sums) LF_LAMBDA {
    float* out = c + row * c_row + v * kLanes<float>;
    const auto s = (vec<float>)sums;
    store(out, accumulate ? load(out) + s : s);
  };
#pragma GCC unroll 8
  for (int r = 0; r < pairs; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vecs; ++v) {
      const float64x2_t x = (float64x2_t)sum[r][2 * v], y = (float64x2_t)sum[r][2 * v + 1];
      put(2 * r, v, vzip1q_f64(x, y));
      if constexpr (Rows > 1) put(2 * r + 1, v, vzip2q_f64(x, y));
    }
}

// `register_tile` with the same operands. Rows of A that lie side by side are one load.
template <int Rows, int Vecs>
LF_INLINE void bfmmla_tile(int64_t kk, const uint64_t* a, int64_t a_row, int64_t a_step,
                           const uint64_t* b, int64_t b_step, float* c, int64_t c_row,
                           bool accumulate) {
  if (Rows > 1 && a_row == 1)
    bfmmla_tile_of<Rows, Vecs, true>(kk, a, 1, a_step, b, b_step, c, c_row, accumulate);
  else
    bfmmla_tile_of<Rows, Vecs, false>(kk, a, a_row, a_step, b, b_step, c, c_row, accumulate);
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
