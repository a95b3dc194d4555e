// How decoding is divided among blocks, and what the kernels support: plain C++.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/types.h"
#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

constexpr int kDecodeWarps = 4;
constexpr int kTileRows = 16;  // rows of a matrix product

constexpr int64_t kMaxShareKeys = 16384;  // keys

// Keys that a warp takes at a time, and how many such steps it holds in shared memory.
constexpr int decode_keys(int64_t head_size) { return head_size <= 64 ? 32 : 16; }
constexpr int decode_stages(int64_t head_size) { return head_size <= 128 ? 3 : 2; }

// Rows (queries times heads of a group) of a block: two tiles where their sums fit registers.
constexpr int decode_tiles(int64_t head_size, int64_t rows) {
  return head_size <= 128 && rows > kTileRows ? 2 : 1;
}

constexpr int64_t decode_shared_bytes(int64_t head_size, int tiles) {
  return 2 * head_size *
         (tiles * kTileRows +
          int64_t{2} * kDecodeWarps * decode_stages(head_size) * decode_keys(head_size));
}

struct DecodePlan {
  int tiles;           // of a block
  int64_t row_blocks;  // blocks that the rows of a key head take
  int64_t shares;      // that its keys are cut into
};

// The lengths of the sequences are not known here: `keys` is what they can hold, or a window shows.
// Whatever a length turns out to be, it is cut into equal shares.
inline DecodePlan decode_plan(const Gpu& gpu, int64_t head_size, int64_t units, int64_t rows,
                              int64_t keys) {
  DecodePlan plan;
  plan.tiles = decode_tiles(head_size, rows);
  plan.row_blocks = std::max<int64_t>(1, ceil_div(rows, plan.tiles * kTileRows));
  plan.shares = 1;
  // Of a multiprocessor's memory every block takes 1 KiB more.
  const int64_t bytes = decode_shared_bytes(head_size, plan.tiles) + 1024;
  const int64_t at_once = gpu.processors * std::max<int64_t>(1, (gpu.shared_bytes + 1024) / bytes);
  const int64_t blocks = std::max<int64_t>(1, units * plan.row_blocks);
  // A share has keys for every warp. More blocks than fill the GPU four times only make the merge
  // longer.
  const int64_t max_shares =
      std::min(ceil_div(keys, int64_t{kDecodeWarps} * decode_keys(head_size)),
               ceil_div(4 * at_once, blocks));
  const auto used = [&](int64_t shares) {  // of the GPU, over all its waves of blocks
    const int64_t waves = ceil_div(blocks * shares, at_once);
    return static_cast<double>(blocks * shares) / static_cast<double>(waves * at_once);
  };
  double best = 0;
  for (int64_t s = 1; s <= max_shares; ++s) best = std::max(best, used(s));
  while (plan.shares < max_shares && used(plan.shares) < 0.9 * best) ++plan.shares;
  // One long sequence among short ones must not wait for a single block.
  plan.shares = std::max(plan.shares, ceil_div(keys, kMaxShareKeys));
  return plan;
}

// Why the kernels do not support such tensors, or null. ops/attention_decode.py has the same rule.
inline const char* decode_refusal(DType dtype, int64_t head_size, int64_t value_size,
                                  bool caches_aligned) {
  if (dtype != DType::bf16 && dtype != DType::f16) return "expected bfloat16 or float16";
  if (head_size != value_size) return "expected values of the head size of the keys";
  if (head_size != 64 && head_size != 128 && head_size != 256)
    return "expected a head size of 64, 128 or 256";
  if (!caches_aligned) return "expected caches with contiguous rows at multiples of 16 bytes";
  return nullptr;
}

}  // namespace cuda
}  // namespace llama_fast
