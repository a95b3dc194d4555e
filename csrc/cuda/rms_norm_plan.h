// How rows are shared out among threads: plain C++.
#pragma once

#include <cstdint>

namespace llama_fast {
namespace cuda {

struct RmsNormPlan {
  int group;  // threads of a row: a power of two
  int rows;   // of a block
};

// `chunks` is the number of accesses that a row takes; a thread keeps `kept` of them in registers.
// Two chunks a thread hide the memory's latency as long as there are threads to have; short rows
// share a warp.
inline RmsNormPlan rms_norm_plan(int64_t chunks, int kept) {
  const int enough = kept < 2 ? kept : 2;
  int group = 8;
  while (group < 512 && group * enough < chunks) group *= 2;
  return {group, group < 256 ? 256 / group : 1};
}

}  // namespace cuda
}  // namespace llama_fast
