// The register tile: a block of C that stays in registers while its sums are computed.
//
// One template serves all instruction sets: numbers of A are broadcast, B comes in registers of
// columns, and M::fma is the instruction (fma or, for Bf16, vdpbf16ps). Only bfmmla, for Bf16 on
// Arm, has a tile of its own.
#pragma once

#include "cpu/matmul/microkernel_bfmmla.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// C (Rows, Vecs registers) (+)= A * B over kk steps. Element (row r, step k) of A is at
// a[r * a_row + k * a_step]. B: a panel of width b_step, of which the first Vecs registers are
// used.
template <class M, int Rows, int Vecs>
LF_INLINE void broadcast_tile(int64_t kk, const typename M::elem* a, int64_t a_row, int64_t a_step,
                              const typename M::elem* b, int64_t b_step, typename M::acc* c,
                              int64_t c_row, bool accumulate) {
  using V = vec<typename M::acc>;
  constexpr int lanes = kLanes<typename M::acc>;
  V sum[Rows][Vecs];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vecs; ++v) sum[r][v] = V{};
  for (int64_t k = 0; k < kk; ++k) {
    V panel[Vecs];
#pragma GCC unroll 8
    for (int v = 0; v < Vecs; ++v) std::memcpy(&panel[v], b + v * lanes, sizeof(V));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < Vecs; ++v) sum[r][v] = M::fma(sum[r][v], a + r * a_row, panel[v]);
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < Vecs; ++v) {
      typename M::acc* out = c + r * c_row + v * lanes;
      store(out, accumulate ? load(out) + sum[r][v] : sum[r][v]);
    }
}

template <class M, int Rows, int Vecs>
LF_INLINE void register_tile(int64_t kk, const typename M::elem* a, int64_t a_row, int64_t a_step,
                             const typename M::elem* b, int64_t b_step, typename M::acc* c,
                             int64_t c_row, bool accumulate) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  if constexpr (M::kPack == 4)
    bfmmla_tile<Rows, Vecs>(kk, a, a_row, a_step, b, b_step, c, c_row, accumulate);
  else
#endif
    broadcast_tile<M, Rows, Vecs>(kk, a, a_row, a_step, b, b_step, c, c_row, accumulate);
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
