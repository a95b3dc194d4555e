// RMSNorm on a GPU.
#include "glue/rms_norm.h"

#include "cuda/glue/device_scope.h"
#include "cuda/glue/ops.h"
#include "cuda/rms_norm.h"

namespace llama_fast {
namespace cuda {
namespace {

// The kernels read no float64.
Tensor narrow(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Double ? as_type(weight, ScalarType::Float) : weight;
}

bool is_empty(const RmsNormArgs& args) { return args.rows == 0 || args.features == 0; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, Tensor weight, OptionalTensor residual,
                                            double eps, double offset) {
  const DeviceScope device(input, weight, residual);
  expect_no_float64(input);
  if (residual.has_value()) expect_no_float64(*residual);
  return rms_norm_forward_with(input, narrow(weight), residual, eps, offset,
                               [&](const RmsNormArgs& args) {
                                 if (!is_empty(args)) rms_norm_forward(device.queue(), args);
                               });
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_y, OptionalTensor grad_x, Tensor x,
                                             Tensor weight, Tensor rstd, double, double offset,
                                             int64_t grad_mask) {
  const DeviceScope device(x, grad_y, grad_x, weight, rstd);
  expect_no_float64(x);
  const ScalarType dweight_type = weight.scalar_type();
  const auto launch = [&](const RmsNormArgs& args, Tensor& dweight) {
    if (is_empty(args)) {
      torch::stable::zero_(dweight);
      return;
    }
    const int64_t parts = grad_mask & kGradWeight ? rms_norm_parts(device.queue(), args) : 0;
    const Tensor partial = new_tensor(x, {parts, args.features}, ScalarType::Float);
    rms_norm_backward(device.queue(), args, dtype_of(dweight),
                      static_cast<float*>(partial.data_ptr()));
  };
  return rms_norm_backward_with(grad_y, grad_x, x, narrow(weight), dweight_type, rstd, offset,
                                grad_mask, launch);
}

}  // namespace cuda
}  // namespace llama_fast
