// RMSNorm: tensors to kernel arguments. Arguments were checked by ops/rms_norm.py; the checks here
// only keep a direct call of the operator from reading outside its tensors.
#include "cpu/dispatch.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

// The type of a sum.
ScalarType promote(ScalarType a, ScalarType b) {
  if (a == b) return a;
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double
                                                            : ScalarType::Float;
}

// Whether the kernels take input of one type beside x of the other.
bool go_together(ScalarType input, ScalarType x) {
  return input == x || (x == ScalarType::Float && input != ScalarType::Double);
}

Tensor set_sizes(RmsNormArgs& a, const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(
      input.dim() >= 1 && weight.dim() == 1 && weight.size(0) == input.size(input.dim() - 1),
      "llama_fast::rms_norm: input must be (...,E) and weight (E,)");
  expect_countable(input);
  a.features = weight.size(0);
  a.rows = 1;
  for (int64_t d = 0; d + 1 < input.dim(); ++d) a.rows *= input.size(d);
  a.weight_dtype = dtype_of(weight);
  return with_rows(weight);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, Tensor weight, OptionalTensor residual,
                                            double eps, double offset) {
  RmsNormArgs a{};
  weight = set_sizes(a, input, weight);
  a.weight = weight.data_ptr();
  a.eps = eps;
  a.offset = offset;
  const ScalarType type = input.scalar_type();
  const ScalarType x_type = residual.has_value() ? promote(type, residual->scalar_type()) : type;
  Tensor y = new_like_heads(input, go_together(type, x_type) ? type : x_type);
  Tensor x = residual.has_value() ? new_like_heads(input, x_type) : no_tensor(type);
  Tensor rstd = new_tensor(input.sizes().data(), input.dim() - 1, wide_type(x_type));
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
  kernels().rms_norm_forward(a);
  return {as_type(y, type), x, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_y, OptionalTensor grad_x, Tensor x,
                                             Tensor weight, Tensor rstd, double, double offset,
                                             int64_t grad_mask) {
  RmsNormArgs a{};
  const bool want_dx = grad_mask & 1, want_dweight = grad_mask & 2;
  const ScalarType type = x.scalar_type();
  weight = set_sizes(a, x, weight);
  a.weight = weight.data_ptr();
  a.offset = offset;
  STD_TORCH_CHECK(rstd.scalar_type() == wide_type(type) && rstd.numel() == a.rows,
                  "llama_fast::rms_norm_backward: rstd is not that of the forward");
  STD_TORCH_CHECK(same_shape(x, grad_y), "llama_fast::rms_norm_backward: shape of grad_y");
  rstd = as_contiguous(rstd);
  a.rstd = rstd.data_ptr();
  Tensor dx = want_dx ? new_like_heads(x, type) : no_tensor(type);
  Tensor dweight = want_dweight ? new_tensor(&a.features, 1, weight.scalar_type())
                                : no_tensor(weight.scalar_type());
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
  kernels().rms_norm_backward(a);
  return {dx, dweight};
}

}  // namespace llama_fast
