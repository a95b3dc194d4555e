// Packing for AMX: tiles of 16 rows of 16 steps, and for B of 16 steps of 16 columns.
#pragma once

#if defined(__AMX_BF16__)
#include "cpu/matmul/amx.h"
#include "cpu/matmul/transpose.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Tiles of A from a panel of 16 rows: out[k / 16][r][k % 16] = step k of row r. Tiles are
// `out_tile` elements apart; steps beyond `run` are zero.
inline void tiles_of_panel(const uint32_t* panel, int64_t run, uint32_t* out, int64_t out_tile) {
  for (int64_t k = 0; k < run; k += kTile) {
    vec<float> square[kTile];
    for (int64_t i = 0; i < kTile; ++i) {
      square[i] = vec<float>{};
      if (k + i < run) std::memcpy(&square[i], panel + (k + i) * kTile, sizeof square[i]);
    }
    transpose<float>(square);
    std::memcpy(out + k / kTile * out_tile, square, sizeof square);
  }
}

// A tile of A: 16 rows by 16 steps.
struct TileOfA {
  const uint32_t* p;
  int64_t row_bytes;
};

// Tiles of A in place, from row i and step k on, `run` steps. Those that cannot be read in place
// are copied to `buffer`, where steps beyond `run` are zero, because B may have NaN there.
inline void tiles_of_strided(StridedA<Bf16> a, int64_t i, int64_t k, int64_t run, uint32_t* buffer,
                             TileOfA* out) {
  const uint32_t* p = a.p + i * a.row + k * a.step;
  for (int64_t s = 0; s < run; s += kTile, p += kTile * a.step, buffer += kTile * kTile, ++out) {
    if (a.step == 1 && run - s >= kTile) {
      *out = {p, a.row * 4};
      continue;
    }
    const int64_t n = min(run - s, kTile);
    vec<float> square[kTile];
    if (a.step == 1) {
      const __mmask16 valid = static_cast<__mmask16>((1u << n) - 1);
      for (int64_t r = 0; r < kTile; ++r)
        square[r] = (vec<float>)_mm512_maskz_loadu_epi32(valid, p + r * a.row);
    } else {  // rows side by side
      for (int64_t r = 0; r < kTile; ++r) {
        square[r] = vec<float>{};
        if (r < n) std::memcpy(&square[r], p + r * a.step, sizeof square[r]);
      }
      transpose<float>(square);
    }
    std::memcpy(buffer, square, sizeof square);
    *out = {buffer, kTile * 4};
  }
}

constexpr int64_t kTileNumbers = 2 * kTile;  // bfloat16 numbers in a row of a tile

// A few rows as the second operand of tdpbf16ps: [rows / 16][numbers / 32][pair][row], padded with
// zeros.
struct FewRowTiles {
  const uint32_t* data;
  int64_t rows;
  int64_t steps;   // tiles from one end of a row to the other
  int64_t blocks;  // of 16 rows

  const uint32_t* tile(int64_t block, int64_t step) const {
    return data + (block * steps + step) * kTile * kTile;
  }
};

// Elements of `FewRowTiles::data`.
inline int64_t few_row_tiles_size(int64_t rows, int64_t numbers) {
  return ceil_div(rows, kTile) * ceil_div(numbers, kTileNumbers) * kTile * kTile;
}

inline FewRowTiles pack_few_row_tiles(const bf16* source, int64_t stride, int64_t rows,
                                      int64_t numbers, uint32_t* to) {
  const FewRowTiles t{to, rows, ceil_div(numbers, kTileNumbers), ceil_div(rows, kTile)};
  for (int64_t block = 0; block < t.blocks; ++block)
    for (int64_t step = 0; step < t.steps; ++step, to += kTile * kTile) {
      vec<float> square[kTile];
      const int64_t k = step * kTileNumbers, n = min(numbers - k, kTileNumbers);
      for (int64_t r = 0; r < kTile; ++r) {
        square[r] = vec<float>{};
        const int64_t row = block * kTile + r;
        if (row < rows)
          std::memcpy(&square[r], source + row * stride + k, static_cast<size_t>(n) * sizeof(bf16));
      }
      transpose<float>(square);
      std::memcpy(to, square, sizeof square);
    }
  return t;
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
