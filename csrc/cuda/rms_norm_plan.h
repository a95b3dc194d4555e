// How rows are divided among threads: plain C++.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

struct RmsNormPlan {
  int group;  // threads of a row: a power of two
  int rows;   // of a block
};

// `chunks` is the number of accesses to a row; a thread keeps `kept` of them in registers. Two
// chunks a thread hide the latency of memory, as long as there are enough threads. Short rows share
// a warp.
inline RmsNormPlan rms_norm_plan(int64_t chunks, int kept) {
  const int enough = kept < 2 ? kept : 2;
  int group = 8;
  while (group < 512 && group * enough < chunks) group *= 2;
  return {group, group < 256 ? 256 / group : 1};
}

// Blocks of the backward, which share the rows. Each keeps the sums of the weight gradients of its
// rows. Four blocks a processor hide latency, and leave few sums to add.
inline int64_t rms_norm_blocks(const Gpu& gpu, int64_t rows, const RmsNormPlan& plan) {
  const int64_t row_blocks = ceil_div(rows, plan.rows), max_blocks = 4 * gpu.processors;
  return row_blocks < max_blocks ? row_blocks : max_blocks;
}

}  // namespace cuda
}  // namespace llama_fast
