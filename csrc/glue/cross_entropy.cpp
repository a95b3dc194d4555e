// Cross-entropy: tensors to kernel arguments. Arguments were checked by ops/cross_entropy.py; the
// checks here only keep a direct call of the operator from reading outside its tensors.
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
struct Call {
  CrossEntropyArgs args{};
  Tensor target, weight;
  int64_t token_sizes[kMaxDims];
  int64_t strides[3][kMaxDims];  // of the logits, the probabilities, the gradient

  Call(const Tensor& input, const Tensor& target_, const OptionalTensor& weight_,
       int64_t ignore_index, int64_t reduction, double label_smoothing, double softcap,
       double z_loss)
      : target(target_), weight(weight_.has_value() ? *weight_ : target_) {
    const int64_t dims = input.dim();
    STD_TORCH_CHECK(dims >= 1 && dims <= kMaxDims, "llama_fast::cross_entropy: input has no dims");
    STD_TORCH_CHECK(reduction >= 0 && reduction <= 2, "llama_fast::cross_entropy: reduction");
    expect_countable(input);
    const int64_t class_dim = dims == 1 ? 0 : 1;
    args.classes = input.size(class_dim);
    args.token_dims = dims - 1;
    args.token_sizes = token_sizes;
    args.tokens = 1;
    for (int64_t d = 0, k = 0; d < dims; ++d) {
      if (d == class_dim) continue;
      token_sizes[k++] = input.size(d);
      args.tokens *= input.size(d);
    }
    args.input = rows(input, strides[0]);
    set_target(input);
    if (weight_.has_value()) {
      const ScalarType type = wide_type(input.scalar_type());
      STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == args.classes,
                      "llama_fast::cross_entropy: weight must have shape (V,)");
      weight = contiguous_as(weight, type);
      args.weight = weight.data_ptr();
    }
    args.ignore_index = ignore_index;
    args.reduction = static_cast<Reduction>(reduction);
    args.label_smoothing = label_smoothing;
    args.softcap = softcap;
    args.z_loss = z_loss;
    args.bad_token = -1;
  }
  Call(const Call&) = delete;

  // The rows of a tensor that is shaped like the input.
  TokenRows rows(const Tensor& t, int64_t* token_strides) const {
    const int64_t dims = args.token_dims + 1, class_dim = dims == 1 ? 0 : 1;
    for (int64_t d = 0, k = 0; d < dims; ++d)
      if (d != class_dim) token_strides[k++] = t.stride(d);
    return {t.data_ptr(), dtype_of(t), t.stride(class_dim), token_strides};
  }

  void set_target(const Tensor& input) {
    if (target.scalar_type() == ScalarType::Long) {
      STD_TORCH_CHECK(target.dim() == args.token_dims, "llama_fast::cross_entropy: target dims");
      for (int64_t d = 0; d < args.token_dims; ++d)
        STD_TORCH_CHECK(target.size(d) == token_sizes[d], "llama_fast::cross_entropy: target size");
      target = as_contiguous(target);
      args.target = static_cast<const int64_t*>(target.data_ptr());
      return;
    }
    STD_TORCH_CHECK(target.dim() == input.dim(), "llama_fast::cross_entropy: target dims");
    for (int64_t d = 0; d < input.dim(); ++d)
      STD_TORCH_CHECK(target.size(d) == input.size(d), "llama_fast::cross_entropy: target size");
    args.probability = rows(target, strides[1]);
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

std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(Call& call, const Tensor& input, bool stats,
                                                       void (*kernel)(CrossEntropyArgs&)) {
  CrossEntropyArgs& a = call.args;
  const bool per_token = a.reduction == Reduction::none;
  const int64_t loss_dims = per_token ? a.token_dims : 0;
  const ScalarType type = wide_type(input.scalar_type());
  Tensor loss = new_tensor(input, a.token_sizes, loss_dims, type);
  Tensor lse = new_tensor(input, a.token_sizes, a.token_dims, ScalarType::Double);
  Tensor z_loss =
      stats ? new_tensor(input, a.token_sizes, loss_dims, type) : no_tensor(input, type);
  Tensor argmax = stats ? new_tensor(input, a.token_sizes, a.token_dims, ScalarType::Long)
                        : no_tensor(input, ScalarType::Long);
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
  Call call(input, target, weight, ignore_index, reduction, label_smoothing, softcap, z_loss);
  return run_forward(call, input, stats, kernels().cross_entropy_forward);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_inplace(
    Tensor input, Tensor target, OptionalTensor weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool stats) {
  Call call(input, target, weight, ignore_index, reduction, label_smoothing, softcap, z_loss);
  return run_forward(call, input, stats, kernels().cross_entropy_fused);
}

Tensor cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor lse, Tensor target,
                              OptionalTensor weight, int64_t ignore_index, int64_t reduction,
                              double label_smoothing, double softcap, double z_loss,
                              OptionalTensor grad_lse) {
  Call call(input, target, weight, ignore_index, reduction, label_smoothing, softcap, z_loss);
  CrossEntropyArgs& a = call.args;
  const ScalarType type = wide_type(input.scalar_type());
  const int64_t losses = a.reduction == Reduction::none ? a.tokens : 1;
  STD_TORCH_CHECK(lse.scalar_type() == ScalarType::Double && lse.numel() == a.tokens,
                  "llama_fast::cross_entropy_backward: lse is not that of the forward");
  STD_TORCH_CHECK(grad_loss.numel() == losses, "llama_fast::cross_entropy_backward: grad_loss");
  grad_loss = contiguous_as(grad_loss, type);
  lse = as_contiguous(lse);
  a.grad_loss = grad_loss.data_ptr();
  Tensor grad_lse_kept = lse;  // alive while the kernel reads it
  if (grad_lse.has_value()) {
    STD_TORCH_CHECK(grad_lse->numel() == a.tokens, "llama_fast::cross_entropy_backward: grad_lse");
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
