// Driver for operands in the cache, such as tiles of attention scores: C (m, n) (+)= A B with A in
// place, with any strides, and B packed in BlockPanels.
#pragma once

#include "cpu/matmul/block_amx.h"
#include "cpu/matmul/microkernel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

#if defined(__AVX2__) || defined(__aarch64__)
constexpr int kBlockTileRows = 6;  // times 4 registers: 24 accumulators of 32; or 2: 12 of 16
#else
constexpr int kBlockTileRows = 4;
#endif

// A sum is computed in runs of this many steps, which are then added: the rounding error of a long
// sum grows with the square root of the longest run.
constexpr int64_t kRunSteps = 64;

// The same for products of mode M: a step of four numbers is two additions.
template <class M>
constexpr int64_t kRun = M::kPack == 4 ? kRunSteps / 2 : kRunSteps;

// The first run of a sum over kk steps: the last one may be half as long again.
template <int64_t kSteps = kRunSteps>
LF_INLINE int64_t run_steps(int64_t kk) {
  return kk > kSteps + kSteps / 2 ? kSteps : kk;
}

template <class M, int Vecs>
void block_panel(int64_t m, int64_t kk, StridedA<M> a, const typename M::elem* b, int64_t b_step,
                 typename M::acc* c, int64_t c_row, bool accumulate) {
  constexpr int64_t run = kRun<M>;
  while (run_steps<run>(kk) < kk) {
    block_panel<M, Vecs>(m, run, a, b, b_step, c, c_row, accumulate);
    a.p += run * a.step;
    b += run * b_step;
    kk -= run;
    accumulate = true;
  }
  int64_t i = 0;
  const auto rows_at_a_time = [&](auto count) {
    constexpr int n = decltype(count)::value;
    for (; i + n <= m; i += n)
      register_tile<M, n, Vecs>(kk, a.p + i * a.row, a.row, a.step, b, b_step, c + i * c_row, c_row,
                                accumulate);
  };
  rows_at_a_time(std::integral_constant<int, kBlockTileRows>{});
  rows_at_a_time(std::integral_constant<int, 2>{});
  rows_at_a_time(std::integral_constant<int, 1>{});
}

// Held by a thread while it calls `multiply_block`.
template <class M>
struct BlockScope {
#if defined(__AMX_BF16__)
  struct None {};
  std::conditional_t<M::kPack == 2, AmxTiles, None> tiles;
#endif
};

// C (m, n) (+)= A (m, kk steps) * B (steps [first, first + kk), the first n columns); n is a
// multiple of the lanes. A has to be readable up to a multiple of 16 rows.
template <class M>
void multiply_block(int64_t m, int64_t n, int64_t kk, StridedA<M> a, PackedB<M> b,
                    typename M::acc* c, int64_t c_row, bool accumulate, int64_t first = 0) {
#if defined(__AMX_BF16__)
  if constexpr (M::kPack == 2)
    return multiply_block_amx(m, n, kk, a, b, c, c_row, accumulate, first);
#endif
  constexpr int lanes = kLanes<typename M::acc>;
  for_panels<M, BlockPanels>(b.columns, [&](int64_t n0, int64_t width) {
    if (n0 >= n) return;
    const int64_t vecs = min(n - n0, width) / lanes;
    const typename M::elem* panel = b.p + n0 * b.steps + first * width;
    typename M::acc* out = c + n0;
    if constexpr (BlockPanels::kVecs == 4) {
      if (vecs == 4) block_panel<M, 4>(m, kk, a, panel, width, out, c_row, accumulate);
      if (vecs == 3) block_panel<M, 3>(m, kk, a, panel, width, out, c_row, accumulate);
    }
    if (vecs == 2) block_panel<M, 2>(m, kk, a, panel, width, out, c_row, accumulate);
    if (vecs == 1) block_panel<M, 1>(m, kk, a, panel, width, out, c_row, accumulate);
  });
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
