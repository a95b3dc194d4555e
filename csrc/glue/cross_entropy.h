// Cross-entropy, CPU and CUDA: the shape of the logits, and checks of the other arguments.
// Users' arguments were checked by ops/cross_entropy.py; the checks here only keep a direct call of
// the operator from reading or writing outside its tensors.
#pragma once

#include "constants.h"
#include "glue/tensors.h"

namespace llama_fast {

// Logits (V), (N, V) or (N, V, d1, ...). Class indices have all dimensions but V.
struct LogitsShape {
  int64_t class_dim, classes;
  int64_t token_dims, tokens = 1;
  int64_t token_sizes[kMaxDims];

  explicit LogitsShape(const Tensor& input) {
    const int64_t dims = input.dim();
    STD_TORCH_CHECK(dims >= 1 && dims <= kMaxDims,
                    "llama_fast::cross_entropy: input: expected 1 to ", kMaxDims,
                    " dimensions, got ", dims);
    expect_valid_sizes(input);
    class_dim = dims == 1 ? 0 : 1;
    classes = input.size(class_dim);
    token_dims = dims - 1;
    for (int64_t d = 0, k = 0; d < dims; ++d) {
      if (d == class_dim) continue;
      token_sizes[k++] = input.size(d);
      tokens *= input.size(d);
    }
  }

  // Class indices (int64), or class probabilities of the shape of the input.
  bool is_class_indices(const Tensor& target, const Tensor& input) const {
    if (target.scalar_type() != ScalarType::Long) {
      STD_TORCH_CHECK(same_shape(target, input),
                      "llama_fast::cross_entropy: target: expected the shape of input");
      return false;
    }
    bool fits = target.dim() == token_dims;
    for (int64_t d = 0; fits && d < token_dims; ++d) fits = target.size(d) == token_sizes[d];
    STD_TORCH_CHECK(fits,
                    "llama_fast::cross_entropy: target: expected the shape of input without its "
                    "classes");
    return true;
  }

  void expect_weight(const Tensor& weight) const {
    STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == classes,
                    "llama_fast::cross_entropy: weight: expected shape (V,)");
  }

  // The gradients of the loss and of lse, and the lse that the forward returned.
  void expect_backward(const Tensor& grad_loss, const Tensor& lse, const OptionalTensor& grad_lse,
                       Reduction reduction) const {
    const auto expect = [](bool ok, const char* what) {
      STD_TORCH_CHECK(ok, "llama_fast::cross_entropy_backward: ", what);
    };
    expect(lse.scalar_type() == ScalarType::Double && lse.numel() == tokens,
           "lse: expected that of the forward");
    expect(grad_loss.numel() == (reduction == Reduction::none ? tokens : 1),
           "grad_loss: expected the shape of the loss");
    expect(!grad_lse.has_value() || grad_lse->numel() == tokens,
           "grad_lse: expected the shape of lse");
  }
};

inline Reduction reduction_of(int64_t reduction) {
  STD_TORCH_CHECK(reduction >= 0 && reduction <= 2,
                  "llama_fast::cross_entropy: reduction: expected 0, 1 or 2, got ", reduction);
  return static_cast<Reduction>(reduction);
}

}  // namespace llama_fast
