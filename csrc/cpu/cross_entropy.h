// Arguments of the cross-entropy kernels: plain pointers, strides and numbers.
#pragma once

#include <cstdint>

#include "constants.h"
#include "cpu/types.h"

namespace llama_fast {

// One row of V numbers per token, anywhere in memory: (V), (N, V), (N, V, d1, ...), any strides.
struct TokenRows {
  void* data;
  DType dtype;
  int64_t class_stride;
  const int64_t* token_strides;  // one for each dimension of the target
};

struct CrossEntropyArgs {
  int64_t tokens, classes;
  int64_t token_dims;
  const int64_t* token_sizes;  // shape of an index target; token n counts through it in order

  TokenRows input;        // the logits; written only in place
  const int64_t* target;  // (tokens) class indices, or null and then
  TokenRows probability;  // class probabilities, of any type

  const void* weight;  // (V) of the accumulation type (float; double for f64), or null
  int64_t ignore_index;
  Reduction reduction;
  double label_smoothing, softcap /* 0: none */, z_loss;

  // Forward outputs.
  void* loss;        // accumulation type: (tokens) for Reduction::none, else one number
  void* z_loss_out;  // like loss: its z-loss part; or null
  int64_t* argmax;   // (tokens), or null if no statistics are requested
  // (tokens). Double even for float logits: with logits near 1e4, a float log-sum-exp would leave
  // the backward pass three correct digits. Zero for ignored tokens if argmax is null.
  double* lse;

  // Backward.
  const void* grad_loss;   // like loss
  const double* grad_lse;  // (tokens), or null
  TokenRows grad;          // like input

  // Set by every pass when a target is neither ignore_index nor in [0, V): the first such
  // token, and then nothing else was written; or -1.
  int64_t bad_token;
};

}  // namespace llama_fast
