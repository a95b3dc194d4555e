// Driver for many rows: C (m, n) (+)= A (m, k) B (k, n) with both operands packed.
//
// A is packed in panels of kPanelRows rows, B in LargePanels. After Goto and van de Geijn 2008,
// "Anatomy of High-Performance Matrix Multiplication": a block of A stays in the second-level
// cache, a run of one panel of B in the first.
#pragma once

#include "cpu/matmul/large_amx.h"
#include "cpu/matmul/microkernel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int kLargeTileRows = kVecRegisters / 4;  // 24 accumulators of 32 registers, 12 of 16
constexpr int64_t kRegisterSteps = 256;            // summed in registers before they are added to C
constexpr int64_t kCacheSteps = 512;               // of a block of A that stays in the cache

// C += A * B over `depth` of the kk steps of A, for one panel of B.
template <class M, int Vecs>
void multiply_panel(int64_t m, int64_t kk, int64_t depth, const typename M::elem* a,
                    const typename M::elem* b, typename M::acc* c, int64_t c_row, bool accumulate) {
  constexpr int64_t lanes = kLanes<typename M::acc>, width = Vecs * lanes;
  // A step of four numbers is two additions.
  constexpr int64_t longest = M::kPack == 4 ? kRegisterSteps / 2 : kRegisterSteps;
  for (int64_t k = 0; k < depth; k += longest) {
    const int64_t run = min(depth - k, longest);
    for (int64_t i = 0; i < m; i += kLargeTileRows) {
      for (int64_t r = 0; r < kLargeTileRows; ++r)
        for (int v = 0; v < Vecs; ++v) __builtin_prefetch(c + (i + r) * c_row + v * lanes, 1);
      register_tile<M, kLargeTileRows, Vecs>(
          run, a + i / kPanelRows * kPanelRows * kk + i % kPanelRows, 1, kPanelRows, b, width,
          c + i * c_row, c_row, accumulate);
    }
    a += run * kPanelRows;
    b += run * width;
    accumulate = true;
  }
}

// Elements of `scratch` that `multiply_large` needs, for which a stack may be too small.
template <class M>
constexpr int64_t multiply_large_scratch() {
#if defined(__AMX_BF16__)
  if (M::kPack == 2) return kAmxBlockRows * kAmxBlockSteps;
#endif
  return 0;
}

// C (m, n) (+)= A (m, kk steps) * B (kk steps, n); n is a multiple of the lanes. Writes whole
// tiles of kLargeTileRows rows.
template <class M>
void multiply_large(int64_t m, int64_t n, int64_t kk, const typename M::elem* a,
                    const typename M::elem* b, typename M::acc* c, int64_t c_row, bool accumulate,
                    [[maybe_unused]] typename M::elem* scratch) {
#if defined(__AMX_BF16__)
  if constexpr (M::kPack == 2)
    return multiply_large_amx(m, n, kk, a, b, c, c_row, accumulate, scratch);
#endif
  constexpr int64_t lanes = kLanes<typename M::acc>;
  for (int64_t k = 0; k < kk; k += kCacheSteps) {
    const int64_t depth = min(kk - k, kCacheSteps);
    const bool add = accumulate || k > 0;
    for_panels<M, LargePanels>(n, [&](int64_t n0, int64_t width) {
      const auto* left = a + k * kPanelRows;
      const auto* right = b + n0 * kk + k * width;
      if (width == 3 * lanes)
        multiply_panel<M, 3>(m, kk, depth, left, right, c + n0, c_row, add);
      else if (width == 2 * lanes)
        multiply_panel<M, 2>(m, kk, depth, left, right, c + n0, c_row, add);
      else
        multiply_panel<M, 1>(m, kk, depth, left, right, c + n0, c_row, add);
    });
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
