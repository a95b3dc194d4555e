// Linear cross-entropy: tensors to kernel arguments. Arguments were checked by
// ops/linear_cross_entropy.py; the checks here only keep a direct call of the operator from reading
// outside its tensors.
#include <torch/csrc/stable/ops.h>

#include "cpu/dispatch.h"
#include "glue/errors.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

// t, or a copy whose rows are contiguous; sets *stride to the distance between rows.
Tensor with_rows(const Tensor& t, int64_t* stride) {
  const bool usable = t.size(1) <= 1 || t.stride(1) == 1;
  Tensor rows = usable ? t : as_contiguous(t);
  *stride = rows.stride(0);
  return rows;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy(
    Tensor input, Tensor linear_weight, Tensor target, OptionalTensor linear_bias,
    OptionalTensor grad_loss, OptionalTensor weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool stats, int64_t grad_mask,
    OptionalTensor grad_lse) {
  const auto check = [](bool good, const char* what) {
    STD_TORCH_CHECK(good, "llama_fast::linear_cross_entropy: ", what);
  };
  check(input.dim() == 2 && linear_weight.dim() == 2 && input.size(1) == linear_weight.size(1) &&
            linear_weight.scalar_type() == input.scalar_type(),
        "input (N,E) and linear_weight (V,E) do not fit");
  check(target.dim() == 1 && target.size(0) == input.size(0) &&
            target.scalar_type() == ScalarType::Long,
        "target must have shape (N,) and be int64");
  check(reduction >= 0 && reduction <= 2, "reduction");
  expect_valid_sizes(input, linear_weight);

  LinearCrossEntropyArgs a{};
  a.tokens = input.size(0);
  a.features = input.size(1);
  a.classes = linear_weight.size(0);
  a.dtype = dtype_of(input);
  a.reduction = static_cast<Reduction>(reduction);
  a.ignore_index = ignore_index;
  a.label_smoothing = label_smoothing;
  a.softcap = softcap;
  a.z_loss = z_loss;
  const Tensor x = with_rows(input, &a.input_stride);
  const Tensor w = with_rows(linear_weight, &a.linear_weight_stride);
  const Tensor y = contiguous_as(target, ScalarType::Long);
  a.input = x.data_ptr();
  a.linear_weight = w.data_ptr();
  a.target = static_cast<const int64_t*>(y.data_ptr());
  for (int64_t n = 0; n < a.tokens; ++n)
    check_index(a.target[n] == ignore_index || (a.target[n] >= 0 && a.target[n] < a.classes),
                "target: expected class indices in [0, ", a.classes, ") or ignore_index (",
                ignore_index, "), got ", a.target[n], " at position (", n, ",)");

  const bool per_token = a.reduction == Reduction::none;
  const ScalarType acc = a.dtype == DType::f64 ? ScalarType::Double : ScalarType::Float;
  // Kept alive while the kernel reads them.
  Tensor bias_kept = y, weight_kept = y, grad_kept = y, grad_lse_kept = y;
  const auto optional = [&](const OptionalTensor& t, int64_t numbers, Tensor& kept,
                            const char* what) -> const void* {
    if (!t.has_value()) return nullptr;
    check(t->numel() == numbers, what);
    kept = contiguous_as(*t, acc);
    return kept.data_ptr();
  };
  a.linear_bias = optional(linear_bias, a.classes, bias_kept, "linear_bias must have shape (V,)");
  a.weight = optional(weight, a.classes, weight_kept, "weight must have shape (V,)");
  a.grad_loss = optional(grad_loss, per_token ? a.tokens : 1, grad_kept, "grad_loss");
  a.grad_lse = optional(grad_lse, a.tokens, grad_lse_kept, "grad_lse must have shape (N,)");

  const auto losses = [&] {
    return per_token ? new_tensor(input, {a.tokens}, acc) : new_tensor(input, {}, acc);
  };
  Tensor loss = losses(), z_part = losses();
  Tensor lse = new_tensor(input, {a.tokens}, acc);
  Tensor argmax = new_tensor(input, {stats ? a.tokens : 0}, ScalarType::Long);
  a.loss = loss.data_ptr();
  a.z_loss_out = z_part.data_ptr();
  a.lse = lse.data_ptr();
  if (stats) a.argmax = static_cast<int64_t*>(argmax.data_ptr());

  const ScalarType out = a.dtype == DType::f16 ? ScalarType::Float : input.scalar_type();
  const auto gradient = [&](int64_t bit, std::initializer_list<int64_t> sizes, ScalarType type,
                            void** data) {
    if (!(grad_mask & bit)) return empty_tensor(input, type);
    Tensor t = new_tensor(input, sizes.begin(), static_cast<int64_t>(sizes.size()), type);
    *data = t.data_ptr();
    return t;
  };
  Tensor g_input = gradient(kGradLinearInput, {a.tokens, a.features}, out, &a.grad_input);
  Tensor g_weight =
      gradient(kGradLinearWeight, {a.classes, a.features}, out, &a.grad_linear_weight);
  Tensor g_bias = gradient(kGradLinearBias, {a.classes}, acc, &a.grad_linear_bias);
  kernels().linear_cross_entropy(a);
  return {loss, lse, z_part, argmax, g_input, g_weight, g_bias};
}

}  // namespace llama_fast
