// Arguments of the rotary position kernel. q and k have one dtype; the tables have the type that is
// computed in (float; double for f64).
#pragma once

#include <cstdint>

#include "cpu/types.h"

namespace llama_fast {

// Heads (B,H,S,D) to rotate, D contiguous. Strides are those of B, H and S.
struct RopeHeads {
  int64_t heads;
  const void* in;
  void* out;
  int64_t in_strides[3], out_strides[3];
};

struct RopeArgs {
  DType dtype;
  int64_t batch, positions, pairs;
  RopeHeads q, k;
  const void* cos;  // (B,S,D/2), D/2 contiguous
  const void* sin;
  int64_t cos_strides[2], sin_strides[2];  // of B (zero for one table for all) and S
  bool interleaved;
  bool inverse;  // rotate by the negative angles
};

}  // namespace llama_fast
