// Which thread turns what: plain C++.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

constexpr int kRopeHeads = 4;  // that a thread turns at most: it reads their angles once

struct RopePlan {
  int chunks;     // threads of a position
  int positions;  // of a block
  int64_t blocks, groups;
};

// `chunks` is the number of accesses that the pairs of a head take; `positions` counts those of all
// sequences.
inline RopePlan rope_plan(int64_t chunks, int64_t positions, int64_t q_heads, int64_t k_heads) {
  RopePlan plan{};
  plan.chunks = static_cast<int>(chunks < 256 ? chunks : 256);
  plan.positions = 256 / plan.chunks;
  plan.blocks = divide_up(positions, plan.positions);
  plan.groups = divide_up(q_heads, kRopeHeads) + divide_up(k_heads, kRopeHeads);
  return plan;
}

}  // namespace cuda
}  // namespace llama_fast
