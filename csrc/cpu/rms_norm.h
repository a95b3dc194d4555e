// Arguments of the RMSNorm kernels. The types they take together:
//   input, y, grad_y        T, any of the four
//   residual, x, grad_x, dx T, or float where T is bf16 or f16
//   rstd                    the accumulation type (float; double for f64)
//   weight, dweight         any of the four
#pragma once

#include "cpu/rows.h"

namespace llama_fast {

struct RmsNormArgs {
  RowShape shape;
  int64_t rows, features;
  double eps, offset;
  const void* weight;  // (E), contiguous
  DType weight_dtype;
  void* rstd;  // (rows): 1 / sqrt(mean(x^2) + eps); written by the forward, read by the backward

  // Forward. Without a residual x is the input itself.
  RowTensor input, residual;
  RowTensor x, y;

  // Backward: reads x. grad_x, dx and dweight may be missing.
  RowTensor grad_y, grad_x, dx;
  void* dweight;  // (E)
};

}  // namespace llama_fast
