// Cross-entropy on a GPU: tensors to kernel arguments.
#include "glue/cross_entropy.h"

#include <limits>

#include "cuda/cross_entropy.h"
#include "cuda/glue/device_scope.h"
#include "cuda/glue/ops.h"

namespace llama_fast {
namespace cuda {
namespace {

// Whether the dimensions after the classes can be merged into one.
bool is_regular(const Tensor& t) {
  int64_t stride = 0, length = 1;
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    if (t.size(d) == 1) continue;
    if (length == 1) stride = t.stride(d);
    if (t.stride(d) != stride * length) return false;
    length *= t.size(d);
  }
  return true;
}

// t's rows; t is regular.
ClassRows rows(const Tensor& t) {
  ClassRows r{t.data_ptr(), dtype_of(t), {0, 0, t.stride(t.dim() == 1 ? 0 : 1)}};
  if (t.dim() > 1) r.strides[0] = t.stride(0);
  for (int64_t d = t.dim() - 1; d >= 2 && r.strides[1] == 0; --d)
    if (t.size(d) > 1) r.strides[1] = t.stride(d);
  return r;
}

Tensor regular(const Tensor& t) { return is_regular(t) ? t : as_contiguous(t); }

// Kernel arguments, and the tensors that they point into.
struct CrossEntropyCall : LogitsShape {
  CrossEntropyArgs args{};
  Reduction reduction;
  Tensor logits, target, weight, totals;

  CrossEntropyCall(const Queue& queue, const Tensor& input, const Tensor& target_,
                   const OptionalTensor& weight_, int64_t ignore_index, int64_t reduction_,
                   double label_smoothing, double softcap, double z_loss)
      : LogitsShape(input),
        reduction(reduction_of(reduction_)),
        logits(input),
        target(target_),
        weight(target_),
        totals(target_) {
    expect_no_float64(input);
    constexpr int64_t kMaxClasses = std::numeric_limits<int32_t>::max() / 2 - 1;
    STD_TORCH_CHECK(classes <= kMaxClasses, "llama_fast::cross_entropy: input: expected at most ",
                    kMaxClasses, " classes, got ", classes);
    args.classes = static_cast<int>(classes);
    args.tokens = tokens;
    args.inner = 1;
    for (int64_t d = class_dim + 1; d < input.dim(); ++d) args.inner *= input.size(d);
    if (args.inner == 0) args.inner = 1;
    logits = regular(input);
    args.logits = rows(logits);
    set_target(input);
    if (weight_.has_value()) {
      expect_weight(*weight_);
      weight = contiguous_as(*weight_, ScalarType::Float);
      args.weight = static_cast<const float*>(weight.data_ptr());
    }
    args.ignore_index = ignore_index;
    args.smoothing = static_cast<float>(label_smoothing);
    args.softcap = static_cast<float>(softcap);
    args.z_loss = static_cast<float>(z_loss);
    args.mean = reduction == Reduction::mean;
    if (args.mean || (args.weight && label_smoothing > 0)) {
      totals = new_tensor(input, {3}, ScalarType::Double);
      auto* numbers = static_cast<double*>(totals.data_ptr());
      cross_entropy_totals(queue, args, numbers);
      args.totals = numbers;
    }
  }
  CrossEntropyCall(const CrossEntropyCall&) = delete;

  void set_target(const Tensor& input) {
    if (is_class_indices(target, input)) {
      target = as_contiguous(target);
      args.target = static_cast<const int64_t*>(target.data_ptr());
      return;
    }
    if (target.scalar_type() == ScalarType::Double) target = as_type(target, ScalarType::Float);
    target = regular(target);
    args.probability = rows(target);
  }

  Tensor parts(const Queue& queue, bool gradient) const {
    constexpr int64_t doubles = sizeof(RowSums) / sizeof(double);
    return new_tensor(logits, {cross_entropy_parts(queue, args, gradient) * doubles},
                      ScalarType::Double);
  }
};

RowSums* sums(const Tensor& parts) {
  return parts.numel() > 0 ? static_cast<RowSums*>(parts.data_ptr()) : nullptr;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(const Queue& queue, CrossEntropyCall& call,
                                                       bool stats, bool gradient) {
  CrossEntropyArgs& a = call.args;
  const Tensor& like = call.logits;
  const int64_t* sizes = call.token_sizes;
  const bool per_token = call.reduction == Reduction::none;
  const int64_t loss_dims = per_token ? call.token_dims : 0;
  Tensor loss = new_tensor(like, sizes, loss_dims, ScalarType::Float);
  Tensor lse = new_tensor(like, sizes, call.token_dims, ScalarType::Double);
  Tensor z_loss = stats ? new_tensor(like, sizes, loss_dims, ScalarType::Float)
                        : empty_tensor(like, ScalarType::Float);
  Tensor argmax = stats ? new_tensor(like, sizes, call.token_dims, ScalarType::Long)
                        : empty_tensor(like, ScalarType::Long);
  Tensor each = new_tensor(like, {per_token ? 0 : 2 * a.tokens}, ScalarType::Double);
  auto* loss_out = static_cast<float*>(loss.data_ptr());
  auto* z_loss_out = stats ? static_cast<float*>(z_loss.data_ptr()) : nullptr;
  a.lse = static_cast<double*>(lse.data_ptr());
  if (stats) a.argmax = static_cast<int64_t*>(argmax.data_ptr());
  if (per_token) {
    a.loss = loss_out;
    a.z_loss_out = z_loss_out;
  } else {
    a.losses = static_cast<double*>(each.data_ptr());
    a.z_losses = a.losses + a.tokens;
  }
  const Tensor parts = call.parts(queue, gradient);
  if (gradient) {
    cross_entropy_fused(queue, a, sums(parts));
  } else {
    cross_entropy_forward(queue, a, sums(parts));
  }
  if (!per_token) cross_entropy_reduce(queue, a, loss_out, z_loss_out);
  return {loss, lse, z_loss, argmax};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy(Tensor input, Tensor target,
                                                         OptionalTensor weight,
                                                         int64_t ignore_index, int64_t reduction,
                                                         double label_smoothing, double softcap,
                                                         double z_loss, bool stats) {
  const DeviceScope device(input, target, weight);
  CrossEntropyCall call(device.queue(), input, target, weight, ignore_index, reduction,
                        label_smoothing, softcap, z_loss);
  return run_forward(device.queue(), call, stats, false);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_inplace(
    Tensor input, Tensor target, OptionalTensor weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool stats) {
  const DeviceScope device(input, target, weight);
  CrossEntropyCall call(device.queue(), input, target, weight, ignore_index, reduction,
                        label_smoothing, softcap, z_loss);
  call.args.grad = call.args.logits;
  auto results = run_forward(device.queue(), call, stats, true);
  if (!is_regular(input)) torch::stable::copy_(input, call.logits);
  return results;
}

Tensor cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor lse, Tensor target,
                              OptionalTensor weight, int64_t ignore_index, int64_t reduction,
                              double label_smoothing, double softcap, double z_loss,
                              OptionalTensor grad_lse) {
  const DeviceScope device(input, grad_loss, lse, target, weight, grad_lse);
  CrossEntropyCall call(device.queue(), input, target, weight, ignore_index, reduction,
                        label_smoothing, softcap, z_loss);
  CrossEntropyArgs& a = call.args;
  const bool per_token = call.reduction == Reduction::none;
  call.expect_backward(grad_loss, lse, grad_lse, call.reduction);
  grad_loss = contiguous_as(grad_loss, ScalarType::Float);
  a.grad_loss = static_cast<const float*>(grad_loss.data_ptr());
  a.grad_step = per_token ? 1 : 0;
  Tensor grad_lse_kept = lse;  // alive until the kernel is queued
  if (grad_lse.has_value()) {
    grad_lse_kept = contiguous_as(*grad_lse, ScalarType::Float);
    a.grad_lse = static_cast<const float*>(grad_lse_kept.data_ptr());
  }

  Tensor grad = torch::stable::empty_like(input);
  Tensor out = is_regular(grad)
                   ? grad
                   : new_tensor(input, input.sizes().data(), input.dim(), input.scalar_type());
  a.grad = rows(out);
  if (a.target) {
    lse = as_contiguous(lse);
    a.lse = static_cast<double*>(lse.data_ptr());
    cross_entropy_backward(device.queue(), a);
  } else {  // the forward saved no sums over the target: read the row again
    Tensor again = new_tensor(input, {a.tokens}, ScalarType::Double);
    a.lse = static_cast<double*>(again.data_ptr());
    const Tensor parts = call.parts(device.queue(), true);
    cross_entropy_fused(device.queue(), a, sums(parts));
  }
  if (!is_regular(grad)) torch::stable::copy_(grad, out);
  return grad;
}

}  // namespace cuda
}  // namespace llama_fast
