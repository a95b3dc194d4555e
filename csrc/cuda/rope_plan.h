// How heads and positions are divided among threads: plain C++.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

constexpr int kRopeHeads = 4;  // that a thread rotates at most, with one read of their angles

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
  plan.blocks = ceil_div(positions, plan.positions);
  plan.groups = ceil_div(q_heads, kRopeHeads) + ceil_div(k_heads, kRopeHeads);
  return plan;
}

}  // namespace cuda
}  // namespace llama_fast
