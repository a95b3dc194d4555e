// Cross-entropy on the CPU: tensors to kernel arguments.
#include "glue/cross_entropy.h"

#include <torch/csrc/stable/ops.h>

#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "glue/errors.h"
#include "glue/memory.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

// Kernel arguments, and the tensors and arrays that they point into.
struct CrossEntropyCall : LogitsShape {
  CrossEntropyArgs args{};
  Tensor target, weight;
  int64_t strides[3][kMaxDims];  // of the logits, the probabilities, the gradient

  CrossEntropyCall(const Tensor& input, const Tensor& target_, const OptionalTensor& weight_,
                   int64_t ignore_index, int64_t reduction, double label_smoothing, double softcap,
                   double z_loss)
      : LogitsShape(input), target(target_), weight(weight_.has_value() ? *weight_ : target_) {
    args.classes = classes;
    args.token_dims = token_dims;
    args.token_sizes = token_sizes;
    args.tokens = tokens;
    args.input = rows(input, strides[0]);
    set_target(input);
    if (weight_.has_value()) {
      expect_weight(weight);
      weight = contiguous_as(weight, accumulation_type(input.scalar_type()));
      args.weight = weight.data_ptr();
    }
    args.ignore_index = ignore_index;
    args.reduction = reduction_of(reduction);
    args.label_smoothing = label_smoothing;
    args.softcap = softcap;
    args.z_loss = z_loss;
    args.bad_token = -1;
  }
  CrossEntropyCall(const CrossEntropyCall&) = delete;

  // The rows of a tensor that is shaped like the input.
  TokenRows rows(const Tensor& t, int64_t* token_strides) const {
    for (int64_t d = 0, k = 0; d <= token_dims; ++d)
      if (d != class_dim) token_strides[k++] = t.stride(d);
    return {t.data_ptr(), dtype_of(t), t.stride(class_dim), token_strides};
  }

  void set_target(const Tensor& input) {
    if (!is_class_indices(target, input)) {
      args.probability = rows(target, strides[1]);
      return;
    }
    target = as_contiguous(target);
    args.target = static_cast<const int64_t*>(target.data_ptr());
  }

  // The words are those of check_targets in ops/_checks.py.
  [[noreturn]] void throw_bad_target() const {
    std::string position;
    int64_t rest = args.bad_token;
    for (int64_t d = args.token_dims - 1; d >= 0; --d) {
      const std::string index = std::to_string(rest % token_sizes[d]);
      position = d == args.token_dims - 1 ? index : index + ", " + position;
      rest /= token_sizes[d];
    }
    if (args.token_dims == 1) position += ",";
    throw_error<std::out_of_range>("target: expected class indices in [0, ", args.classes,
                                   ") or ignore_index (", args.ignore_index, "), got ",
                                   args.target[args.bad_token], " at position (", position, ")");
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(CrossEntropyCall& call, const Tensor& input,
                                                       bool stats,
                                                       void (*kernel)(CrossEntropyArgs&)) {
  CrossEntropyArgs& a = call.args;
  const bool per_token = a.reduction == Reduction::none;
  const int64_t loss_dims = per_token ? a.token_dims : 0;
  const ScalarType type = accumulation_type(input.scalar_type());
  Tensor loss = new_tensor(input, a.token_sizes, loss_dims, type);
  Tensor lse = new_tensor(input, a.token_sizes, a.token_dims, ScalarType::Double);
  Tensor z_loss =
      stats ? new_tensor(input, a.token_sizes, loss_dims, type) : empty_tensor(input, type);
  Tensor argmax = stats ? new_tensor(input, a.token_sizes, a.token_dims, ScalarType::Long)
                        : empty_tensor(input, ScalarType::Long);
  a.loss = loss.data_ptr();
  a.lse = static_cast<double*>(lse.data_ptr());
  if (stats) {
    a.z_loss_out = z_loss.data_ptr();
    a.argmax = static_cast<int64_t*>(argmax.data_ptr());
  }
  kernel(a);
  if (a.bad_token >= 0) call.throw_bad_target();
  return {loss, lse, z_loss, argmax};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy(Tensor input, Tensor target,
                                                         OptionalTensor weight,
                                                         int64_t ignore_index, int64_t reduction,
                                                         double label_smoothing, double softcap,
                                                         double z_loss, bool stats) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, softcap,
                        z_loss);
  return run_forward(call, input, stats, kernels().cross_entropy_forward);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_inplace(
    Tensor input, Tensor target, OptionalTensor weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool stats) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, softcap,
                        z_loss);
  return run_forward(call, input, stats, kernels().cross_entropy_fused);
}

Tensor cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor lse, Tensor target,
                              OptionalTensor weight, int64_t ignore_index, int64_t reduction,
                              double label_smoothing, double softcap, double z_loss,
                              OptionalTensor grad_lse) {
  CrossEntropyCall call(input, target, weight, ignore_index, reduction, label_smoothing, softcap,
                        z_loss);
  CrossEntropyArgs& a = call.args;
  const ScalarType type = accumulation_type(input.scalar_type());
  call.expect_backward(grad_loss, lse, grad_lse, a.reduction);
  grad_loss = contiguous_as(grad_loss, type);
  lse = as_contiguous(lse);
  a.grad_loss = grad_loss.data_ptr();
  Tensor grad_lse_kept = lse;  // alive while the kernel reads it
  if (grad_lse.has_value()) {
    grad_lse_kept = contiguous_as(*grad_lse, ScalarType::Double);
    a.grad_lse = static_cast<const double*>(grad_lse_kept.data_ptr());
  }
  a.lse = static_cast<double*>(lse.data_ptr());

  Tensor grad = input.is_contiguous()
                    ? new_tensor(input, input.sizes().data(), input.dim(), input.scalar_type())
                    : with_idle_memory([&] { return torch::stable::empty_like(input); });
  a.grad = call.rows(grad, call.strides[2]);
  kernels().cross_entropy_backward(a);
  if (a.bad_token >= 0) call.throw_bad_target();
  return grad;
}

}  // namespace llama_fast
