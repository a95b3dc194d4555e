// The driver of large.h in tile registers: six tiles of sums, one of A, one of B.
//
// A panel of B is made of tiles of B. A lies in panels of the same form, so its tiles are
// transposed first: 16 x 16 pairs for every 16 columns of C.
#pragma once

#if defined(__AMX_BF16__)
#include "cpu/matmul/packing_amx.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kAmxBlockSteps = 256;  // pairs summed in a tile before they are added to C
constexpr int64_t kAmxBlockRows = 256;   // rows of A whose tiles are ready at a time

// C (16 Rows, 16 Vecs) (+)= A * B over `run` steps. A: tiles, `a_tile` apart from one of 16 steps
// to the next; those of the second 16 rows follow the first's. B: a panel of 16 Vecs columns.
template <int Rows, int Vecs>
void large_tiles(int64_t run, const uint32_t* a, int64_t a_tile, const uint32_t* b, float* c,
                 int64_t c_row, int64_t rows, bool accumulate) {
  static_assert(Rows <= 2 && Vecs <= 3, "eight tiles: six sums, one of A, one of B");
  constexpr int64_t width = Vecs * kTile, b_row = width * 4, a_row = kTile * 4;
  _tile_zero(0);
  if constexpr (Vecs > 1) _tile_zero(1);
  if constexpr (Vecs > 2) _tile_zero(2);
  if constexpr (Rows > 1) _tile_zero(3);
  if constexpr (Rows > 1 && Vecs > 1) _tile_zero(4);
  if constexpr (Rows > 1 && Vecs > 2) _tile_zero(5);
  alignas(64) uint32_t rest[kTile * width];
  for (int64_t k = 0; k < run; k += kTile, a += a_tile, b += kTile * width) {
    const uint32_t* right = b;
    if (run - k < kTile) {  // numbers after the panel may be NaN
      std::memset(rest, 0, sizeof rest);
      std::memcpy(rest, b, static_cast<size_t>((run - k) * width) * sizeof *b);
      right = rest;
    }
    write_back();
    // Neighbouring products share a tile: seven loads for six of them.
    _tile_loadd(6, a, a_row);
    _tile_loadd(7, right, b_row);
    _tile_dpbf16ps(0, 6, 7);
    if constexpr (Rows == 1) {
      if constexpr (Vecs > 1) {
        _tile_loadd(7, right + kTile, b_row);
        _tile_dpbf16ps(1, 6, 7);
      }
      if constexpr (Vecs > 2) {
        _tile_loadd(7, right + 2 * kTile, b_row);
        _tile_dpbf16ps(2, 6, 7);
      }
    } else {
      _tile_loadd(6, a + kTile * kTile, a_row);
      _tile_dpbf16ps(3, 6, 7);
      if constexpr (Vecs > 1) {
        _tile_loadd(7, right + kTile, b_row);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(6, a, a_row);
        _tile_dpbf16ps(1, 6, 7);
      }
      if constexpr (Vecs > 2) {
        _tile_loadd(7, right + 2 * kTile, b_row);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(6, a + kTile * kTile, a_row);
        _tile_dpbf16ps(5, 6, 7);
      }
    }
  }
  alignas(64) float sums[kTile * kTile];
  const int64_t upper = min(rows, kTile);
  _tile_stored(0, sums, a_row);
  add_tile(sums, kTile, c, c_row, upper, accumulate);
  if constexpr (Vecs > 1) {
    _tile_stored(1, sums, a_row);
    add_tile(sums, kTile, c + kTile, c_row, upper, accumulate);
  }
  if constexpr (Vecs > 2) {
    _tile_stored(2, sums, a_row);
    add_tile(sums, kTile, c + 2 * kTile, c_row, upper, accumulate);
  }
  if constexpr (Rows > 1) {
    c += kTile * c_row;
    _tile_stored(3, sums, a_row);
    add_tile(sums, kTile, c, c_row, rows - kTile, accumulate);
    if constexpr (Vecs > 1) {
      _tile_stored(4, sums, a_row);
      add_tile(sums, kTile, c + kTile, c_row, rows - kTile, accumulate);
    }
    if constexpr (Vecs > 2) {
      _tile_stored(5, sums, a_row);
      add_tile(sums, kTile, c + 2 * kTile, c_row, rows - kTile, accumulate);
    }
  }
}

// `multiply_large` for pairs of bfloat16, with the same operands. `left` has room for
// kAmxBlockRows * kAmxBlockSteps numbers: too many for the stack of a thread.
inline void multiply_large_amx(int64_t m, int64_t n, int64_t kk, const uint32_t* a,
                               const uint32_t* b, float* c, int64_t c_row, bool accumulate,
                               uint32_t* left) {
  const AmxTiles tiles;
  for (int64_t m0 = 0; m0 < m; m0 += kAmxBlockRows) {
    const int64_t end = min(m - m0, kAmxBlockRows);
    for (int64_t k = 0; k < kk; k += kAmxBlockSteps) {
      const int64_t run = min(kk - k, kAmxBlockSteps);
      // Tiles of 32 rows lie together: [rows / 32][steps / 16][2][16][16].
      constexpr int64_t pair = 2 * kTile * kTile;
      for (int64_t i = 0; i < end; i += kTile)
        tiles_of_panel(a + (m0 + i) * kk + k * kTile, run,
                       left + i / 32 * 32 * kAmxBlockSteps + i % 32 * kTile, pair);
      const bool add = accumulate || k > 0;
      for (int64_t n0 = 0; n0 < n;) {
        const int64_t width = min(n - n0, 3 * kTile);
        const uint32_t* right = b + n0 * kk + k * width;
        for (int64_t i = 0; i < end; i += 32) {
          const int64_t rows = min(end - i, 32);
          const uint32_t* l = left + i * kAmxBlockSteps;
          float* out = c + (m0 + i) * c_row + n0;
          const auto call = [&](auto product) {
            product(run, l, pair, right, out, c_row, rows, add);
          };
          if (width == 3 * kTile)
            rows > kTile ? call(large_tiles<2, 3>) : call(large_tiles<1, 3>);
          else if (width == 2 * kTile)
            rows > kTile ? call(large_tiles<2, 2>) : call(large_tiles<1, 2>);
          else
            rows > kTile ? call(large_tiles<2, 1>) : call(large_tiles<1, 1>);
        }
        n0 += width;
      }
    }
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
