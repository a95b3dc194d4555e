// RMSNorm, CPU and CUDA: tensors to kernel arguments. Users' arguments were checked by
// ops/rms_norm.py; the checks here only keep a direct call of the operator from reading outside its
// tensors.
#pragma once

#include "constants.h"
#include "cpu/rms_norm.h"
#include "glue/tensors.h"

namespace llama_fast {

// The type of a sum.
inline ScalarType promote(ScalarType a, ScalarType b) {
  if (a == b) return a;
  return a == ScalarType::Double || b == ScalarType::Double ? ScalarType::Double
                                                            : ScalarType::Float;
}

// Whether the kernels take input of one type beside x of the other.
inline bool are_supported_together(ScalarType input, ScalarType x) {
  return input == x || (x == ScalarType::Float && input != ScalarType::Double);
}

// Sets the arguments that forward and backward share. Returns the tensor that args.weight points
// into.
inline Tensor set_input_and_weight(RmsNormArgs& args, const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(
      input.dim() >= 1 && weight.dim() == 1 && weight.size(0) == input.size(input.dim() - 1),
      "llama_fast::rms_norm: expected input (...,E) and weight (E,)");
  expect_valid_sizes(input);
  args.features = weight.size(0);
  args.rows = 1;
  for (int64_t d = 0; d + 1 < input.dim(); ++d) args.rows *= input.size(d);
  Tensor rows = with_rows(weight);
  args.weight = rows.data_ptr();
  args.weight_dtype = dtype_of(rows);
  return rows;
}

// launch(args) runs the forward kernel. `weight` has a dtype that the kernel reads.
template <class Launch>
std::tuple<Tensor, Tensor, Tensor> rms_norm_forward_with(Tensor input, const Tensor& weight,
                                                         const OptionalTensor& residual, double eps,
                                                         double offset, Launch&& launch) {
  RmsNormArgs args{};
  const Tensor weight_kept = set_input_and_weight(args, input, weight);
  args.eps = eps;
  args.offset = offset;
  const ScalarType type = input.scalar_type();
  const ScalarType x_type = residual.has_value() ? promote(type, residual->scalar_type()) : type;
  Tensor y = new_like_heads(input, are_supported_together(type, x_type) ? type : x_type);
  Tensor x = residual.has_value() ? new_like_heads(input, x_type) : empty_tensor(input, type);
  Tensor rstd = new_tensor(input, input.sizes().data(), input.dim() - 1, accumulation_type(x_type));
  args.rstd = rstd.data_ptr();

  input = with_rows(as_type(input, y.scalar_type()));
  RowMerger rows(input);
  rows.add(input, args.input);
  rows.add(y, args.y);
  Tensor residual_kept = input;
  if (residual.has_value()) {
    STD_TORCH_CHECK(same_shape(input, *residual),
                    "llama_fast::rms_norm: residual: expected the shape of input");
    residual_kept = with_rows(as_type(*residual, x_type));
    rows.add(residual_kept, args.residual);
    rows.add(x, args.x);
  }
  rows.merge(args.shape);
  launch(args);
  return {as_type(y, type), x, rstd};
}

// launch(args, dweight) runs the backward kernel, which fills dx and dweight; gradients that are
// not in `grad_mask` are empty. dweight has the dtype `dweight_type`.
template <class Launch>
std::tuple<Tensor, Tensor> rms_norm_backward_with(Tensor grad_y, const OptionalTensor& grad_x,
                                                  Tensor x, const Tensor& weight,
                                                  ScalarType dweight_type, Tensor rstd,
                                                  double offset, int64_t grad_mask,
                                                  Launch&& launch) {
  RmsNormArgs args{};
  const Tensor weight_kept = set_input_and_weight(args, x, weight);
  args.offset = offset;
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(rstd.scalar_type() == accumulation_type(type) && rstd.numel() == args.rows,
                  "llama_fast::rms_norm_backward: rstd: expected that of the forward");
  STD_TORCH_CHECK(same_shape(x, grad_y),
                  "llama_fast::rms_norm_backward: grad_y: expected the shape of x");
  rstd = as_contiguous(rstd);
  args.rstd = rstd.data_ptr();
  Tensor dx = grad_mask & kGradX ? new_like_heads(x, type) : empty_tensor(x, type);
  Tensor dweight = grad_mask & kGradWeight ? new_tensor(x, {args.features}, dweight_type)
                                           : empty_tensor(x, dweight_type);
  if (grad_mask & kGradWeight) args.dweight = dweight.data_ptr();

  x = with_rows(x);
  grad_y = with_rows(are_supported_together(grad_y.scalar_type(), type) ? grad_y
                                                                        : as_type(grad_y, type));
  RowMerger rows(x);
  rows.add(x, args.x);
  rows.add(grad_y, args.grad_y);
  Tensor grad_x_kept = x;
  if (grad_mask & kGradX) {
    rows.add(dx, args.dx);
    if (grad_x.has_value()) {
      STD_TORCH_CHECK(same_shape(x, *grad_x),
                      "llama_fast::rms_norm_backward: grad_x: expected the shape of x");
      grad_x_kept = with_rows(as_type(*grad_x, type));
      rows.add(grad_x_kept, args.grad_x);
    }
  }
  rows.merge(args.shape);
  launch(args, dweight);
  return {dx, dweight};
}

}  // namespace llama_fast
