// Arguments of the cross-entropy kernels: device memory, strides and numbers.
#pragma once

#include <cstdint>

#include "cpu/types.h"
#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

// A larger log-sum-exp has too few digits, even in float64, for the logarithm that it contains.
// kernels/_cross_entropy_gradient.py has the same number.
constexpr double kMaxExactLse = 1e9;

// A row of V numbers for each token. Two dimensions count the tokens; `inner` is the size of the
// second. Strides are those of the two, and of the classes.
struct ClassRows {
  void* data;
  DType dtype;
  int64_t strides[3];
};

struct CrossEntropyArgs {
  int64_t tokens, inner;
  int classes;
  ClassRows logits;       // written only in place
  const int64_t* target;  // (tokens), or null and then
  ClassRows probability;  // class probabilities
  const float* weight;    // (V), or null
  int64_t ignore_index;
  float smoothing, softcap /* 0: none */, z_loss;

  // What "mean" divides cross-entropy and z-loss by, and the summed weight of all classes.
  const double* totals;
  bool mean;

  // Forward: of each token the loss and its z-loss part, as float or else (for a sum) as double.
  // Null where not wanted.
  float *loss, *z_loss_out;
  double *losses, *z_losses;
  double* lse;
  int64_t* argmax;

  // Backward: grad_loss (null: one) of the token n is at n * grad_step.
  const float* grad_loss;
  int64_t grad_step;
  const float* grad_lse;  // of each token, or null
  ClassRows grad;         // may be the logits themselves
};

// The sums of a row; see cross_entropy_row.h.
struct RowSums {
  float max, sum, target, weighted;
  uint64_t top;
};

// Writes the three numbers of args.totals.
void cross_entropy_totals(const Queue& queue, const CrossEntropyArgs& args, double* totals);

// Number of RowSums, for parts of rows, that the two functions below need; may be 0.
int64_t cross_entropy_parts(const Queue& queue, const CrossEntropyArgs& args, bool gradient);

// The loss of each token.
void cross_entropy_forward(const Queue& queue, const CrossEntropyArgs& args, RowSums* parts);
// Loss and gradient in one read and one write of the logits, where a row fits. Without outputs of
// the forward, the gradient alone.
void cross_entropy_fused(const Queue& queue, const CrossEntropyArgs& args, RowSums* parts);
// The gradient for class indices, from the lse of each token.
void cross_entropy_backward(const Queue& queue, const CrossEntropyArgs& args);

// The sum of the losses of all tokens, or their mean.
void cross_entropy_reduce(const Queue& queue, const CrossEntropyArgs& args, float* loss,
                          float* z_loss);

}  // namespace cuda
}  // namespace llama_fast
