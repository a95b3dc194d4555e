// The driver of few_rows.h in tile registers: four tiles of sums, two of B', two of A.
//
// A tile of B' (16 rows of 32 numbers, as they are in memory) times a tile of A (16 pairs of its
// columns, a column for each of 16 rows) gives 16 x 16 sums; those of a row of A are made in the
// same order, whatever the number of rows.
#pragma once

#if defined(__AMX_BF16__)
#include "cpu/matmul/packing_amx.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kTileRowsAhead = 32;  // rows of B' between prefetch and use

// 16 rows of B', of which the first b.rows exist, as tiles.
struct TileRows {
  RowsInPlace<bf16> b;
  int64_t numbers;  // of a row

  // Where a tile lies, and how many bytes from row to row. One that reaches beyond the rows or
  // their ends is copied to `rest`, padded with zeros.
  LF_INLINE const bf16* tile(int64_t step, bf16* rest, size_t& row_bytes) const {
    const int64_t k = step * kTileNumbers;
    if (k + kTileNumbers <= numbers && b.rows == kTile) {
      for (int64_t r = 0; r < kTile; ++r)
        __builtin_prefetch(b.p + (kTileRowsAhead + r) * b.stride + k, 0, 2);
      row_bytes = static_cast<size_t>(b.stride) * sizeof(bf16);
      return b.p + k;
    }
    row_bytes = kTileNumbers * sizeof(bf16);
    std::memset(static_cast<void*>(rest), 0, kTile * row_bytes);
    const int64_t n = min(numbers - k, kTileNumbers);
    for (int64_t r = 0; r < b.rows; ++r)
      std::memcpy(rest + r * kTileNumbers, b.p + r * b.stride + k,
                  static_cast<size_t>(n) * sizeof(bf16));
    return rest;
  }
};

// 16 BRows rows of B' from `row` on with 16 ABlocks rows of A from `block` on. See
// multiply_few_rows_amx.
template <int BRows, int ABlocks, class Write>
void few_row_tiles(const FewRowTiles& a, RowsInPlace<bf16> b, int64_t numbers, int64_t block,
                   int64_t row, int64_t end, Write&& write) {
  const auto rows_from = [&](int64_t first) {
    return TileRows{{b.p + first * b.stride, b.stride, min(end - first, kTile)}, numbers};
  };
  const TileRows upper = rows_from(row), lower = rows_from(BRows > 1 ? row + kTile : row);
  write_back();
  _tile_zero(0);
  if constexpr (ABlocks > 1) _tile_zero(1);
  if constexpr (BRows > 1) _tile_zero(2);
  if constexpr (BRows > 1 && ABlocks > 1) _tile_zero(3);
  constexpr size_t a_row = kTile * sizeof(uint32_t), sums_row = kTile * sizeof(float);
  alignas(64) bf16 rest[kTile * kTileNumbers];
  size_t row_bytes = 0;
  for (int64_t step = 0; step < a.steps; ++step) {
    _tile_loadd(6, a.tile(block, step), a_row);
    if constexpr (ABlocks > 1) _tile_loadd(7, a.tile(block + 1, step), a_row);
    const bf16* from = upper.tile(step, rest, row_bytes);
    write_back();
    _tile_loadd(4, from, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (ABlocks > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (BRows > 1) {
      from = lower.tile(step, rest, row_bytes);
      write_back();
      _tile_loadd(5, from, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (ABlocks > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  const int64_t first = block * kTile, left = a.rows - first;
  const int64_t some = min(left, kTile), more = min(left, 2 * kTile);
  // Sums come with rows of B' in rows and rows of A in columns.
  const auto put = [&](vec<float>* sums, bool second, int64_t r, int64_t a_rows) {
    transpose<float>(sums);
    const TileRows& rows = second ? lower : upper;
    for (int64_t i = 0; i < a_rows; ++i)
      write(first + r + i, second ? row + kTile : row, sums[i], rows.b.rows);
  };
  vec<float> sums[kTile];
  _tile_stored(0, sums, sums_row);
  put(sums, false, 0, some);
  if constexpr (ABlocks > 1) {
    _tile_stored(1, sums, sums_row);
    put(sums, false, kTile, more - kTile);
  }
  if constexpr (BRows > 1) {
    _tile_stored(2, sums, sums_row);
    put(sums, true, 0, some);
  }
  if constexpr (BRows > 1 && ABlocks > 1) {
    _tile_stored(3, sums, sums_row);
    put(sums, true, kTile, more - kTile);
  }
}

// write(row of A, first row of B', register of elements of C, how many of them) for all rows of A
// and the rows [begin, end) of B', of `numbers` numbers each.
template <class Write>
void multiply_few_rows_amx(const FewRowTiles& a, RowsInPlace<bf16> b, int64_t numbers,
                           int64_t begin, int64_t end, Write&& write) {
  const AmxTiles tiles;
  for (int64_t row = begin; row < end; row += 2 * kTile)
    for (int64_t block = 0; block < a.blocks; block += 2) {
      const bool two_rows = end - row > kTile, two_blocks = block + 1 < a.blocks;
      if (two_rows && two_blocks)
        few_row_tiles<2, 2>(a, b, numbers, block, row, end, write);
      else if (two_rows)
        few_row_tiles<2, 1>(a, b, numbers, block, row, end, write);
      else if (two_blocks)
        few_row_tiles<1, 2>(a, b, numbers, block, row, end, write);
      else
        few_row_tiles<1, 1>(a, b, numbers, block, row, end, write);
    }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
