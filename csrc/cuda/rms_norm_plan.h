// How rows are shared out among threads: plain C++.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

struct RmsNormPlan {
  int group;  // threads of a row: a power of two
  int rows;   // of a block
};

// `chunks` is the number of accesses that a row takes; a thread keeps `kept` of them in registers.
// Two chunks a thread hide the memory's latency, as far as there are threads; short rows share a
// warp.
inline RmsNormPlan rms_norm_plan(int64_t chunks, int kept) {
  const int enough = kept < 2 ? kept : 2;
  int group = 8;
  while (group < 512 && group * enough < chunks) group *= 2;
  return {group, group < 256 ? 256 / group : 1};
}

// Blocks that take turns at the rows in the backward. Each keeps the sums of its rows' weight
// gradients: four to a processor are enough to hide latency, and few sums are left to add.
inline int64_t rms_norm_blocks(const Gpu& gpu, int64_t rows, const RmsNormPlan& plan) {
  const int64_t wanted = divide_up(rows, plan.rows), most = 4 * gpu.processors;
  return wanted < most ? wanted : most;
}

}  // namespace cuda
}  // namespace llama_fast
