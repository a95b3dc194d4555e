// Arguments of the linear map of a few rows.
#pragma once

#include "cpu/types.h"

namespace llama_fast {

// out (rows, outer) = input (rows, inner) @ weight (outer, inner)' + bias (outer).
struct LinearArgs {
  DType dtype;  // of all tensors
  int64_t rows, inner, outer;
  const void* input;      // rows one after the other
  const void* weight;     // numbers of a row one after the other
  int64_t weight_stride;  // from row to row
  const void* bias;       // or null
  void* out;
};

}  // namespace llama_fast
