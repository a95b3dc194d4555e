// Arguments of the linear map of a few rows.
#pragma once

#include "cpu/types.h"

namespace llama_fast {

// A matrix (outer, inner) of weights.
struct LinearWeight {
  const void* data;  // numbers of a row one after the other
  int64_t stride;    // from row to row
  int64_t outer;
  const void* bias = nullptr;  // (outer)
};

// out (rows, outer) = input (rows, inner) @ weight' + bias, for several weights beside each other.
struct LinearArgs {
  static constexpr int kMost = 3;

  DType dtype;  // of all tensors
  int64_t rows, inner;
  const void* input;  // rows one after the other
  LinearWeight weights[kMost];
  int count;  // of weights
  void* out;  // (rows, sum of outer)
};

}  // namespace llama_fast
