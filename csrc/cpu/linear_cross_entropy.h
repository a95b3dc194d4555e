// Arguments of the linear cross-entropy kernel: plain pointers, strides and numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/cross_entropy.h"
#include "cpu/types.h"

namespace llama_fast {

// Bytes of working memory that a call may always use, and at most.
// llama_fast/train/plan_memory.py has the same numbers (tests/ops/test_constants.py).
constexpr size_t kMinBudget = 16 << 20, kMaxBudget = 512 << 20;

struct LinearCrossEntropyArgs {
  int64_t tokens, features, classes;  // N, E, V
  DType dtype;                        // of input, linear_weight and, but for f16, their gradients

  const void* input;  // (N,E): rows input_stride apart
  int64_t input_stride;
  const void* linear_weight;  // (V,E)
  int64_t linear_weight_stride;
  const int64_t* target;  // (N), in [0, V) or ignore_index

  // Of the type computed in (float; double for f64), or null.
  const void* linear_bias;  // (V)
  const void* weight;       // (V)
  const void* grad_loss;    // null: one; else (N) for Reduction::none, else one number
  const void* grad_lse;     // (N): the gradients are those of sum grad_lse * lse, not of the loss
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing, softcap /* 0: none */, z_loss;

  // Outputs, of the type computed in. Ignored tokens: lse 0, argmax -1.
  void* loss;        // (N) for Reduction::none, else one number
  void* z_loss_out;  // like loss: its z-loss part
  void* lse;         // (N)
  int64_t* argmax;   // (N), or null

  // Gradients, contiguous, or null if not wanted. Float32 for f16: loss scaling is applied later,
  // when small gradients would already have been rounded to zero.
  void* grad_input;          // (N,E)
  void* grad_linear_weight;  // (V,E)
  void* grad_linear_bias;    // (V), of the type computed in
};

}  // namespace llama_fast
