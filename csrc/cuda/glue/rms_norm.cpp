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
  const OnDeviceOf device(input);
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
  if (a.rows > 0) rms_norm_forward(device.queue(), a);
  return {as_type(y, type), x, rstd};
}

}  // namespace cuda
}  // namespace llama_fast
