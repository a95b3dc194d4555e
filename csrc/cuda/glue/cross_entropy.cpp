// Cross-entropy: tensors to kernel arguments. Arguments were checked by ops/cross_entropy.py; the
// checks here only keep a direct call of the operator from reading outside its tensors.
#include "cuda/cross_entropy.h"

#include <limits>

#include "constants.h"
#include "cuda/glue/ops.h"
#include "cuda/glue/tensors.h"

namespace llama_fast {
namespace cuda {
namespace {

// Whether the dimensions behind the classes can be counted as one.
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

Tensor regular(const Tensor& t) { return is_regular(t) ? t : torch::stable::contiguous(t); }

// Kernel arguments, and the tensors that they point into.
struct Call {
  CrossEntropyArgs args{};
  Reduction reduction;
  Tensor logits, target, weight, totals;
  int64_t token_sizes[kMaxDims];
  int64_t token_dims;

  Call(const Queue& queue, const Tensor& input, const Tensor& target_,
       const OptionalTensor& weight_, int64_t ignore_index, int64_t reduction_,
       double label_smoothing, double softcap, double z_loss)
      : reduction(static_cast<Reduction>(reduction_)),
        logits(input),
        target(target_),
        weight(target_),
        totals(target_) {
    const int64_t dims = input.dim();
    STD_TORCH_CHECK(dims >= 1 && dims <= kMaxDims, "llama_fast::cross_entropy: input has no dims");
    STD_TORCH_CHECK(reduction_ >= 0 && reduction_ <= 2, "llama_fast::cross_entropy: reduction");
    expect_narrow(input);
    const int64_t class_dim = dims == 1 ? 0 : 1;
    const int64_t classes = input.size(class_dim);
    STD_TORCH_CHECK(classes < std::numeric_limits<int32_t>::max() / 2,
                    "llama_fast::cross_entropy: too many classes");
    args.classes = static_cast<int>(classes);
    token_dims = dims - 1;
    args.tokens = args.inner = 1;
    for (int64_t d = 0, k = 0; d < dims; ++d) {
      if (d == class_dim) continue;
      token_sizes[k++] = input.size(d);
      args.tokens *= input.size(d);
      if (d > class_dim) args.inner *= input.size(d);
    }
    if (args.inner == 0) args.inner = 1;
    logits = regular(input);
    args.logits = rows(logits);
    set_target(input);
    if (weight_.has_value()) {
      STD_TORCH_CHECK(weight_->dim() == 1 && weight_->size(0) == classes,
                      "llama_fast::cross_entropy: weight must have shape (V,)");
      weight = torch::stable::contiguous(as_type(*weight_, ScalarType::Float));
      args.weight = static_cast<const float*>(weight.data_ptr());
    }
    args.ignore_index = ignore_index;
    args.smoothing = static_cast<float>(label_smoothing);
    args.softcap = static_cast<float>(softcap);
    args.z_loss = static_cast<float>(z_loss);
    args.mean = reduction == Reduction::mean;
    if (args.mean || (args.weight && label_smoothing > 0)) {
      totals = new_tensor(input, {3}, ScalarType::Double);
      auto* made = static_cast<double*>(totals.data_ptr());
      cross_entropy_totals(queue, args, made);
      args.totals = made;
    }
  }
  Call(const Call&) = delete;

  void set_target(const Tensor& input) {
    if (target.scalar_type() == ScalarType::Long) {
      STD_TORCH_CHECK(target.dim() == token_dims, "llama_fast::cross_entropy: target dims");
      for (int64_t d = 0; d < token_dims; ++d)
        STD_TORCH_CHECK(target.size(d) == token_sizes[d], "llama_fast::cross_entropy: target size");
      if (!target.is_contiguous()) target = torch::stable::contiguous(target);
      args.target = static_cast<const int64_t*>(target.data_ptr());
      return;
    }
    STD_TORCH_CHECK(same_shape(target, input), "llama_fast::cross_entropy: shape of target");
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

std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(const Queue& queue, Call& call, bool stats,
                                                       bool gradient) {
  CrossEntropyArgs& a = call.args;
  const Tensor& like = call.logits;
  const int64_t* sizes = call.token_sizes;
  const bool per_token = call.reduction == Reduction::none;
  const int64_t loss_dims = per_token ? call.token_dims : 0;
  Tensor loss = new_tensor(like, sizes, loss_dims, ScalarType::Float);
  Tensor lse = new_tensor(like, sizes, call.token_dims, ScalarType::Double);
  Tensor z_loss = stats ? new_tensor(like, sizes, loss_dims, ScalarType::Float)
                        : no_tensor(like, ScalarType::Float);
  Tensor argmax = stats ? new_tensor(like, sizes, call.token_dims, ScalarType::Long)
                        : no_tensor(like, ScalarType::Long);
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
  const OnDeviceOf device(input, target, weight);
  Call call(device.queue(), input, target, weight, ignore_index, reduction, label_smoothing,
            softcap, z_loss);
  return run_forward(device.queue(), call, stats, false);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_inplace(
    Tensor input, Tensor target, OptionalTensor weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool stats) {
  const OnDeviceOf device(input, target, weight);
  Call call(device.queue(), input, target, weight, ignore_index, reduction, label_smoothing,
            softcap, z_loss);
  call.args.grad = call.args.logits;
  auto results = run_forward(device.queue(), call, stats, true);
  if (!is_regular(input)) torch::stable::copy_(input, call.logits);
  return results;
}

Tensor cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor lse, Tensor target,
                              OptionalTensor weight, int64_t ignore_index, int64_t reduction,
                              double label_smoothing, double softcap, double z_loss,
                              OptionalTensor grad_lse) {
  const OnDeviceOf device(input, grad_loss, lse, target, weight, grad_lse);
  Call call(device.queue(), input, target, weight, ignore_index, reduction, label_smoothing,
            softcap, z_loss);
  CrossEntropyArgs& a = call.args;
  const bool per_token = call.reduction == Reduction::none;
  STD_TORCH_CHECK(lse.scalar_type() == ScalarType::Double && lse.numel() == a.tokens,
                  "llama_fast::cross_entropy_backward: lse is not that of the forward");
  STD_TORCH_CHECK(grad_loss.numel() == (per_token ? a.tokens : 1),
                  "llama_fast::cross_entropy_backward: grad_loss");
  grad_loss = torch::stable::contiguous(as_type(grad_loss, ScalarType::Float));
  a.grad_loss = static_cast<const float*>(grad_loss.data_ptr());
  a.grad_step = per_token ? 1 : 0;
  Tensor grad_lse_kept = lse;  // alive until the kernel is queued
  if (grad_lse.has_value()) {
    STD_TORCH_CHECK(grad_lse->numel() == a.tokens, "llama_fast::cross_entropy_backward: grad_lse");
    grad_lse_kept = torch::stable::contiguous(as_type(*grad_lse, ScalarType::Float));
    a.grad_lse = static_cast<const float*>(grad_lse_kept.data_ptr());
  }

  Tensor grad = torch::stable::empty_like(input);
  Tensor out = is_regular(grad)
                   ? grad
                   : new_tensor(input, input.sizes().data(), input.dim(), input.scalar_type());
  a.grad = rows(out);
  if (a.target) {
    lse = torch::stable::contiguous(lse);
    a.lse = static_cast<double*>(lse.data_ptr());
    cross_entropy_backward(device.queue(), a);
  } else {  // the sums of the target were not saved: the row is swept again
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
