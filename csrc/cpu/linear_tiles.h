// The linear map of a few rows of bfloat16 in the tile registers of Intel's AMX.
//
// A tile of the weight, 16 rows of 32 numbers as they lie in memory, times a tile of the input
// (16 pairs of its columns, a column for each of 16 rows) gives sums of 16 x 16 products; whatever
// the number of the input's rows is, those of each are added in the same order.
#pragma once

#if defined(__AMX_BF16__)
#include "cpu/amx.h"
#include "cpu/linear.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kTileNumbers = 2 * kTile;  // of a row of the weight
constexpr int64_t kTilesAhead = 32;          // rows of the weight between request and use

// The input as tiles: [rows / 16][inner / 32][pair][row], padded by zeros.
struct TiledInput {
  const uint32_t* data;
  int64_t steps;   // tiles from one end of a row to the other
  int64_t blocks;  // of 16 rows

  const uint32_t* tile(int64_t block, int64_t step) const {
    return data + (block * steps + step) * kTile * kTile;
  }
};

inline TiledInput tile_input(const LinearArgs& a, uint32_t* to) {
  const TiledInput t{to, (a.inner + kTileNumbers - 1) / kTileNumbers, (a.rows + kTile - 1) / kTile};
  for (int64_t block = 0; block < t.blocks; ++block)
    for (int64_t step = 0; step < t.steps; ++step, to += kTile * kTile) {
      vec<float> rows[kTile];
      const int64_t k = step * kTileNumbers;
      const int64_t n = a.inner - k < kTileNumbers ? a.inner - k : kTileNumbers;
      for (int64_t r = 0; r < kTile; ++r) {
        rows[r] = vec<float>{};
        const int64_t row = block * kTile + r;
        if (row < a.rows)
          std::memcpy(&rows[r], static_cast<const bf16*>(a.input) + row * a.inner + k,
                      static_cast<size_t>(n) * sizeof(bf16));
      }
      transpose<float>(rows);
      std::memcpy(to, rows, sizeof rows);
    }
  return t;
}

// 16 rows of a weight from `row` on, of which `there` exist, as tiles.
struct WeightRows {
  const bf16* rows;
  int64_t stride, inner, there;

  // Where a tile lies, and how many bytes from row to row. What lies outside is zero, in `rest`.
  LF_INLINE const bf16* tile(int64_t step, bf16* rest, size_t& row_bytes) const {
    const int64_t k = step * kTileNumbers;
    if (k + kTileNumbers <= inner && there == kTile) {
      for (int64_t r = 0; r < kTile; ++r)
        __builtin_prefetch(rows + (kTilesAhead + r) * stride + k, 0, 2);
      row_bytes = static_cast<size_t>(stride) * sizeof(bf16);
      return rows + k;
    }
    row_bytes = kTileNumbers * sizeof(bf16);
    std::memset(static_cast<void*>(rest), 0, kTile * row_bytes);
    const int64_t n = inner - k < kTileNumbers ? inner - k : kTileNumbers;
    for (int64_t r = 0; r < there; ++r)
      std::memcpy(rest + r * kTileNumbers, rows + r * stride + k,
                  static_cast<size_t>(n) * sizeof(bf16));
    return rest;
  }
};

// Sums of 16 rows of the weight (in rows) and 16 of the input, of which `there` and `wanted` are.
inline void put_sums(vec<float>* sums, bf16* out, int64_t outer, const bf16* bias, int64_t there,
                     int64_t wanted) {
  transpose<float>(sums);
  const vec<float> shift = bias == nullptr ? vec<float>{} : load_acc_n(bias, there, 0.0f);
  for (int64_t r = 0; r < wanted; ++r) store_acc_n(out + r * outer, sums[r] + shift, there);
}

// 16 Rows rows of the weight with 16 Blocks rows of the input.
template <int Rows, int Blocks>
void tiles_of(const LinearArgs& a, const LinearWeight& weight, const TiledInput& input,
              int64_t block, bf16* out, int64_t outer, int64_t row, int64_t end) {
  const auto rows_from = [&](int64_t first) {
    const int64_t there = end - first < kTile ? end - first : kTile;
    return WeightRows{static_cast<const bf16*>(weight.data) + first * weight.stride, weight.stride,
                      a.inner, there};
  };
  const WeightRows upper = rows_from(row), lower = rows_from(Rows > 1 ? row + kTile : row);
  to_memory();
  _tile_zero(0);
  if constexpr (Blocks > 1) _tile_zero(1);
  if constexpr (Rows > 1) _tile_zero(2);
  if constexpr (Rows > 1 && Blocks > 1) _tile_zero(3);
  constexpr size_t input_row = kTile * sizeof(uint32_t), sums_row = kTile * sizeof(float);
  alignas(64) bf16 rest[kTile * kTileNumbers];
  size_t row_bytes = 0;
  for (int64_t step = 0; step < input.steps; ++step) {
    _tile_loadd(6, input.tile(block, step), input_row);
    if constexpr (Blocks > 1) _tile_loadd(7, input.tile(block + 1, step), input_row);
    const bf16* from = upper.tile(step, rest, row_bytes);
    to_memory();
    _tile_loadd(4, from, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Blocks > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (Rows > 1) {
      from = lower.tile(step, rest, row_bytes);
      to_memory();
      _tile_loadd(5, from, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (Blocks > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  const int64_t first = block * kTile, left = a.rows - first;
  const int64_t some = left < kTile ? left : kTile, more = left < 2 * kTile ? left : 2 * kTile;
  const auto put = [&](vec<float>* sums, bool second, int64_t r, int64_t wanted) {
    const int64_t at = second ? row + kTile : row;
    const auto* bias = static_cast<const bf16*>(weight.bias);
    put_sums(sums, out + (first + r) * outer + at, outer, bias == nullptr ? bias : bias + at,
             second ? lower.there : upper.there, wanted);
  };
  vec<float> sums[kTile];
  _tile_stored(0, sums, sums_row);
  put(sums, false, 0, some);
  if constexpr (Blocks > 1) {
    _tile_stored(1, sums, sums_row);
    put(sums, false, kTile, more - kTile);
  }
  if constexpr (Rows > 1) {
    _tile_stored(2, sums, sums_row);
    put(sums, true, 0, some);
  }
  if constexpr (Rows > 1 && Blocks > 1) {
    _tile_stored(3, sums, sums_row);
    put(sums, true, kTile, more - kTile);
  }
}

// Rows [begin, end) of a weight with all rows of the input.
inline void stretch_of_tiles(const LinearArgs& a, const LinearWeight& weight,
                             const TiledInput& input, bf16* out, int64_t outer, int64_t begin,
                             int64_t end) {
  const Tiles tiles;
  for (int64_t row = begin; row < end; row += 2 * kTile)
    for (int64_t block = 0; block < input.blocks; block += 2) {
      const bool two_rows = end - row > kTile, two_blocks = block + 1 < input.blocks;
      const auto call = [&](auto product) {
        product(a, weight, input, block, out, outer, row, end);
      };
      if (two_rows) {
        two_blocks ? call(tiles_of<2, 2>) : call(tiles_of<2, 1>);
      } else {
        two_blocks ? call(tiles_of<1, 2>) : call(tiles_of<1, 1>);
      }
    }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
