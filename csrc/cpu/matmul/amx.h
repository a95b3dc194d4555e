// The tile registers of Intel's AMX: 16 rows of 64 bytes each.
//
// tdpbf16ps adds to a tile of sums (16 x 16) the product of a tile of A (16 rows of 16 pairs of
// bfloat16) and a tile of B (16 pairs of 16 columns, the two numbers of a pair side by side). Each
// driver has its own arrangement of the eight tiles: see large_amx.h, block_amx.h, few_rows_amx.h.
#pragma once

#if defined(__AMX_BF16__)
#include "cpu/matmul/operands.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kTile = 16;  // rows of a tile, and 32-bit elements of a row

struct alignas(64) AmxTileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// This thread's tile registers, in use while the object lives.
struct AmxTiles {
  AmxTiles() {
    const AmxTileConfig config;
    _tile_loadconfig(&config);
  }
  ~AmxTiles() { _tile_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
};

// Makes the compiler write to memory what a tile load is about to read, because it does not know
// that the load reads it.
LF_INLINE void write_back() { asm volatile("" ::: "memory"); }

// c (+)= a tile of sums whose rows are `sums_row` apart, the first `rows` rows of it.
LF_INLINE void add_tile(const float* sums, int64_t sums_row, float* c, int64_t c_row, int64_t rows,
                        bool accumulate) {
  for (int64_t r = 0; r < rows; ++r) {
    const vec<float> v = load(sums + r * sums_row);
    store(c + r * c_row, accumulate ? load(c + r * c_row) + v : v);
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
