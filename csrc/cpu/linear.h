// Arguments of the linear map of a few rows.
#pragma once

#include "cpu/types.h"

namespace llama_fast {

// A weight matrix (outer, inner).
struct LinearWeight {
  const void* data;  // each row contiguous
  int64_t stride;    // from row to row
  int64_t outer;
  const void* bias = nullptr;  // (outer), or null
};

// out (rows, sum of outer) = input (rows, inner) @ weight' + bias, for several weights side by
// side.
struct LinearArgs {
  static constexpr int kMaxWeights = 3;

  DType dtype;  // of all tensors
  int64_t rows, inner;
  const void* input;  // contiguous
  LinearWeight weights[kMaxWeights];
  int count;  // of weights
  void* out;  // contiguous
};

}  // namespace llama_fast
