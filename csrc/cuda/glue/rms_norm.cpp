// RMSNorm: tensors to kernel arguments. Arguments were checked by ops/rms_norm.py; the checks here
// only keep a direct call of the operator from reading outside its tensors.
#include "cuda/rms_norm.h"

#include "cuda/glue/ops.h"
#include "cuda/glue/tensors.h"

namespace llama_fast {
namespace cuda {
namespace {

// Whether the kernels take input of one type beside x of the other.
bool go_together(ScalarType input, ScalarType x) { return input == x || x == ScalarType::Float; }

Tensor set_sizes(RmsNormArgs& a, const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(
      input.dim() >= 1 && weight.dim() == 1 && weight.size(0) == input.size(input.dim() - 1),
      "llama_fast::rms_norm: input must be (...,E) and weight (E,)");
  expect_narrow(input);
  a.features = weight.size(0);
  a.rows = 1;
  for (int64_t d = 0; d + 1 < input.dim(); ++d) a.rows *= input.size(d);
  const bool wide = weight.scalar_type() == ScalarType::Double;
  Tensor made = with_rows(wide ? as_type(weight, ScalarType::Float) : weight);
  a.weight = made.data_ptr();
  a.weight_dtype = dtype_of(made);
  return made;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, Tensor weight, OptionalTensor residual,
                                            double eps, double offset) {
  const OnDeviceOf device(input, weight, residual);
  RmsNormArgs a{};
  weight = set_sizes(a, input, weight);
  a.eps = eps;
  a.offset = offset;
  const ScalarType type = input.scalar_type();
  ScalarType x_type = type;
  if (residual.has_value()) {
    expect_narrow(*residual);
    if (residual->scalar_type() != type) x_type = ScalarType::Float;
  }
  Tensor y = new_like_heads(input, go_together(type, x_type) ? type : x_type);
  Tensor x = residual.has_value() ? new_like_heads(input, x_type) : no_tensor(input, type);
  Tensor rstd = new_tensor(input, input.sizes().data(), input.dim() - 1, ScalarType::Float);
  a.rstd = rstd.data_ptr();

  input = with_rows(as_type(input, y.scalar_type()));
  RowsOf rows(input);
  rows.add(input, a.input);
  rows.add(y, a.y);
  Tensor added = input;
  if (residual.has_value()) {
    STD_TORCH_CHECK(same_shape(input, *residual), "llama_fast::rms_norm: shape of residual");
    added = with_rows(as_type(*residual, x_type));
    rows.add(added, a.residual);
    rows.add(x, a.x);
  }
  rows.merge(a.shape);
  if (a.rows > 0 && a.features > 0) rms_norm_forward(device.queue(), a);
  return {as_type(y, type), x, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_y, OptionalTensor grad_x, Tensor x,
                                             Tensor weight, Tensor rstd, double, double offset,
                                             int64_t grad_mask) {
  const OnDeviceOf device(x, grad_y, grad_x, weight, rstd);
  RmsNormArgs a{};
  const bool want_dx = grad_mask & 1, want_dweight = grad_mask & 2;
  const ScalarType type = x.scalar_type(), weight_type = weight.scalar_type();
  weight = set_sizes(a, x, weight);
  a.offset = offset;
  STD_TORCH_CHECK(rstd.scalar_type() == ScalarType::Float && rstd.numel() == a.rows,
                  "llama_fast::rms_norm_backward: rstd is not that of the forward");
  STD_TORCH_CHECK(same_shape(x, grad_y), "llama_fast::rms_norm_backward: shape of grad_y");
  rstd = torch::stable::contiguous(rstd);
  a.rstd = rstd.data_ptr();
  Tensor dx = want_dx ? new_like_heads(x, type) : no_tensor(x, type);
  Tensor dweight =
      want_dweight ? new_tensor(x, {a.features}, weight_type) : no_tensor(x, weight_type);
  if (a.rows == 0 || a.features == 0) {
    torch::stable::zero_(dweight);
    return {dx, dweight};
  }
  if (want_dweight) a.dweight = dweight.data_ptr();

  x = with_rows(x);
  grad_y = with_rows(go_together(grad_y.scalar_type(), type) ? grad_y : as_type(grad_y, type));
  RowsOf rows(x);
  rows.add(x, a.x);
  rows.add(grad_y, a.grad_y);
  Tensor added = x;
  if (want_dx) {
    rows.add(dx, a.dx);
    if (grad_x.has_value()) {
      STD_TORCH_CHECK(same_shape(x, *grad_x), "llama_fast::rms_norm_backward: shape of grad_x");
      added = with_rows(as_type(*grad_x, type));
      rows.add(added, a.grad_x);
    }
  }
  rows.merge(a.shape);
  const int64_t parts = want_dweight ? rms_norm_parts(device.queue(), a) : 0;
  Tensor partial = new_tensor(x, {parts, a.features}, ScalarType::Float);
  rms_norm_backward(device.queue(), a,
                    weight_type == ScalarType::Double ? DType::f64 : a.weight_dtype,
                    static_cast<float*>(partial.data_ptr()));
  return {dx, dweight};
}

}  // namespace cuda
}  // namespace llama_fast
