// The products of matmul.h in the tile registers of Intel's AMX: 16 x 16 numbers of C at a time.
//
// tdpbf16ps multiplies a tile of A (16 rows of 16 pairs) with one of B (16 pairs of 16 columns,
// the two numbers of a pair side by side). A panel of B is made of such tiles. A lies in panels of
// the same form, so its tiles are transposed first: 16 x 16 pairs for every 16 columns of C.
#pragma once

#if defined(__AMX_BF16__)
#include "cpu/gemm.h"
#include "cpu/transpose.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kTile = 16;        // rows of a tile, and 32-bit numbers of a row
constexpr int64_t kTileSteps = 256;  // steps (pairs) summed in a tile before they are added to C
constexpr int64_t kTileBlock = 256;  // rows of A whose tiles lie ready at a time

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles of this thread, as long as it multiplies.
struct Tiles {
  Tiles() {
    const TileConfig config;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// What was written is in memory when a tile is loaded: the compiler does not know that it is read.
LF_INLINE void to_memory() { asm volatile("" ::: "memory"); }

// out[k / 16][r][k % 16] = step k of row r, for 16 rows of a panel; steps beyond `run` are zero.
inline void tiles_of_rows(const uint32_t* panel, int64_t run, uint32_t* out, int64_t out_tile) {
  for (int64_t k = 0; k < run; k += kTile) {
    vec<float> block[kTile];
    for (int64_t i = 0; i < kTile; ++i) {
      block[i] = vec<float>{};
      if (k + i < run) std::memcpy(&block[i], panel + (k + i) * kTile, sizeof block[i]);
    }
    transpose<float>(block);
    std::memcpy(out + k / kTile * out_tile, block, sizeof block);
  }
}

// c (+)= a tile of sums in rows of `sums_row`, of which `rows` count.
LF_INLINE void add_tile(const float* sums, int64_t sums_row, float* c, int64_t c_row, int64_t rows,
                        bool accumulate) {
  for (int64_t r = 0; r < rows; ++r) {
    const vec<float> v = load(sums + r * sums_row);
    store(c + r * c_row, accumulate ? load(c + r * c_row) + v : v);
  }
}

// C (16 Rows, 16 Vecs) (+)= A * B over `run` steps. A: tiles, `a_tile` apart from one of 16 steps
// to the next; those of the second 16 rows follow the first's. B: a panel of 16 Vecs columns.
template <int Rows, int Vecs>
void tile_product(int64_t run, const uint32_t* a, int64_t a_tile, const uint32_t* b, float* c,
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
    if (run - k < kTile) {  // what follows the panel may be no numbers
      std::memset(rest, 0, sizeof rest);
      std::memcpy(rest, b, static_cast<size_t>((run - k) * width) * sizeof *b);
      right = rest;
    }
    to_memory();
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
  const int64_t upper = rows < kTile ? rows : kTile;
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

// `multiply` of matmul.h for pairs of bfloat16, with the same operands. `left` has room for
// kTileBlock * kTileSteps numbers: too many for the stack of a thread.
inline void multiply_tiles(int64_t m, int64_t n, int64_t kk, const uint32_t* a, const uint32_t* b,
                           float* c, int64_t c_row, bool accumulate, uint32_t* left) {
  const Tiles tiles;
  for (int64_t m0 = 0; m0 < m; m0 += kTileBlock) {
    const int64_t end = m - m0 < kTileBlock ? m - m0 : kTileBlock;
    for (int64_t k = 0; k < kk; k += kTileSteps) {
      const int64_t run = kk - k < kTileSteps ? kk - k : kTileSteps;
      // Tiles of 32 rows lie together: [rows / 32][steps / 16][2][16][16].
      constexpr int64_t pair = 2 * kTile * kTile;
      for (int64_t i = 0; i < end; i += kTile)
        tiles_of_rows(a + (m0 + i) * kk + k * kTile, run,
                      left + i / 32 * 32 * kTileSteps + i % 32 * kTile, pair);
      const bool add = accumulate || k > 0;
      for (int64_t n0 = 0; n0 < n;) {
        const int64_t width = n - n0 < 3 * kTile ? n - n0 : 3 * kTile;
        const uint32_t* right = b + n0 * kk + k * width;
        for (int64_t i = 0; i < end; i += 32) {
          const int64_t rows = end - i < 32 ? end - i : 32;
          const uint32_t* l = left + i * kTileSteps;
          float* out = c + (m0 + i) * c_row + n0;
          const auto call = [&](auto product) {
            product(run, l, pair, right, out, c_row, rows, add);
          };
          if (width == 3 * kTile)
            rows > kTile ? call(tile_product<2, 3>) : call(tile_product<1, 3>);
          else if (width == 2 * kTile)
            rows > kTile ? call(tile_product<2, 2>) : call(tile_product<1, 2>);
          else
            rows > kTile ? call(tile_product<2, 1>) : call(tile_product<1, 1>);
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
