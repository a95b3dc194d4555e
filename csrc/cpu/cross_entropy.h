// Arguments of the cross-entropy kernels: plain pointers, strides and numbers.
#pragma once

#include <cstdint>

#include "cpu/types.h"

namespace llama_fast {

enum class Reduction : int { none = 0, mean = 1, sum = 2 };

// Logits (outer, V, inner): row (o, i) holds the V logits of one prediction, and token
// n = o * inner + i. `inner` is 1 for the common (N, V) case.
struct CrossEntropyArgs {
  DType dtype;  // of the logits, the gradient and probability targets
  int64_t outer, inner, classes;

  void* input;  // written only in place
  int64_t input_stride_outer, input_stride_class, input_stride_inner;

  const int64_t* target;  // (tokens) class indices, contiguous; or null and then
  const void* target_probability;
  int64_t probability_stride_outer, probability_stride_class, probability_stride_inner;

  const void* weight;  // (V) of the type computed in (float or double), or null
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing, softcap /* 0: none */, z_loss;

  // Forward outputs, of the type computed in (float; double for f64).
  void* loss;        // (tokens) for none, else one number
  void* lse;         // (tokens)
  void* z_loss_out;  // like loss: its z-loss part
  int64_t* argmax;   // (tokens), or null when not wanted

  // Backward.
  const void* grad_loss;  // like loss; null means one
  void* grad;             // like input; may be input itself
  int64_t grad_stride_outer, grad_stride_class, grad_stride_inner;

  // Set by the forward when a target is neither ignore_index nor in [0, V): the first such
  // token, or -1.
  int64_t bad_token;
};

}  // namespace llama_fast
