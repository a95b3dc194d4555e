// The driver of block.h in tile registers: four tiles of sums, two of A, two of B.
//
// Tiles of A whose steps lie side by side are used where they are; others are copied. A panel of B
// is a row of tiles. Sums begin with C and are made in the order of the steps, 16 of them at a
// time.
#pragma once

#if defined(__AMX_BF16__)
#include "cpu/matmul/packing_amx.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// C (16 Rows, 16 Vecs) (+)= A * B, B a panel of rows `width` long from column 0 on, of which the
// last 16 steps are at `last`.
template <int Rows, int Vecs>
void block_tiles(int64_t count, const TileOfA* upper, const TileOfA* lower, const uint32_t* b,
                 int64_t width, const uint32_t* last, int64_t last_width, float* c, int64_t c_row,
                 int64_t rows, bool accumulate) {
  static_assert(Rows <= 2 && Vecs <= 2, "eight tiles: four sums, two of A, two of B");
  alignas(64) float sums[2 * kTile][2 * kTile];
  // Whole tiles of C are read and written in place; others are copied, so that the order of sums
  // does not depend on the number of rows.
  const bool direct = rows == Rows * kTile;
  if (!direct && accumulate)
    for (int64_t r = 0; r < Rows * kTile; ++r)
      for (int v = 0; v < Vecs; ++v)
        store(&sums[r][v * kTile], r < rows ? load(c + r * c_row + v * kTile) : vec<float>{});
  float* out = direct ? c : &sums[0][0];
  const int64_t out_row = direct ? c_row : 2 * kTile, bytes = out_row * 4;
  const auto column = [&](int64_t r, int64_t v) { return out + r * kTile * out_row + v * kTile; };
  write_back();
  if (accumulate) {
    _tile_loadd(0, column(0, 0), bytes);
    if constexpr (Vecs > 1) _tile_loadd(1, column(0, 1), bytes);
    if constexpr (Rows > 1) _tile_loadd(2, column(1, 0), bytes);
    if constexpr (Rows > 1 && Vecs > 1) _tile_loadd(3, column(1, 1), bytes);
  } else {
    _tile_zero(0);
    if constexpr (Vecs > 1) _tile_zero(1);
    if constexpr (Rows > 1) _tile_zero(2);
    if constexpr (Rows > 1 && Vecs > 1) _tile_zero(3);
  }
  for (int64_t t = 0; t < count; ++t, b += kTile * width) {
    const uint32_t* right = t + 1 < count ? b : last;
    const int64_t right_bytes = (t + 1 < count ? width : last_width) * 4;
    _tile_loadd(4, upper[t].p, upper[t].row_bytes);
    _tile_loadd(6, right, right_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Vecs > 1) {
      _tile_loadd(7, right + kTile, right_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (Rows > 1) {
      _tile_loadd(5, lower[t].p, lower[t].row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (Vecs > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, column(0, 0), bytes);
  if constexpr (Vecs > 1) _tile_stored(1, column(0, 1), bytes);
  if constexpr (Rows > 1) _tile_stored(2, column(1, 0), bytes);
  if constexpr (Rows > 1 && Vecs > 1) _tile_stored(3, column(1, 1), bytes);
  if (!direct)
    for (int v = 0; v < Vecs; ++v)
      add_tile(&sums[0][v * kTile], 2 * kTile, c + v * kTile, c_row, rows, false);
}

// `multiply_block` for pairs of bfloat16. Reads whole tiles: 16 rows of A, even if there are
// fewer.
inline void multiply_block_amx(int64_t m, int64_t n, int64_t kk, StridedA<Bf16> a, PackedB<Bf16> b,
                               float* c, int64_t c_row, bool accumulate, int64_t first) {
  constexpr int64_t kSteps = 128;  // steps; more would need more of the stack
  alignas(64) uint32_t left[2][kSteps * kTile];
  alignas(64) uint32_t rest[2 * kTile * kTile];
  TileOfA upper[kSteps / kTile], lower[kSteps / kTile];
  for (int64_t k = 0; k < kk; k += kSteps, accumulate = true) {
    const int64_t run = min(kk - k, kSteps);
    const int64_t count = ceil_div(run, kTile), tail = run % kTile;
    for (int64_t i = 0; i < m; i += 2 * kTile) {
      const int64_t rows = min(m - i, 2 * kTile);
      tiles_of_strided(a, i, k, run, left[0], upper);
      if (rows > kTile) tiles_of_strided(a, i + kTile, k, run, left[1], lower);
      // Not by for_panels: its lambda makes the stack frame too large.
      for (int64_t n0 = 0, width = 0; n0 < n; n0 += width) {
        width = BlockPanels::vecs((b.columns - n0) / kTile) * kTile;
        const int64_t end = min(n - n0, width);
        for (int64_t v = 0; v < end; v += 2 * kTile) {
          const int64_t columns = min(end - v, 2 * kTile);
          const uint32_t* right = b.p + n0 * b.steps + (first + k) * width + v;
          const uint32_t* last = right + (count - 1) * kTile * width;
          int64_t last_width = width;
          if (tail > 0) {  // numbers after the end may be NaN
            std::memset(rest, 0, sizeof rest);
            for (int64_t s = 0; s < tail; ++s)
              std::memcpy(rest + s * 2 * kTile, last + s * width,
                          static_cast<size_t>(columns) * sizeof *rest);
            last = rest, last_width = 2 * kTile;
          }
          float* out = c + i * c_row + n0 + v;
          const auto call = [&](auto of_tiles) {
            of_tiles(count, upper, lower, right, width, last, last_width, out, c_row, rows,
                     accumulate);
          };
          if (columns > kTile)
            rows > kTile ? call(block_tiles<2, 2>) : call(block_tiles<1, 2>);
          else
            rows > kTile ? call(block_tiles<2, 1>) : call(block_tiles<1, 1>);
        }
      }
    }
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
