// RMSNorm on the CPU.
#include "glue/rms_norm.h"

#include "cpu/dispatch.h"

namespace llama_fast {

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, Tensor weight, OptionalTensor residual,
                                            double eps, double offset) {
  return rms_norm_forward_with(input, weight, residual, eps, offset,
                               [](const RmsNormArgs& args) { kernels().rms_norm_forward(args); });
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_y, OptionalTensor grad_x, Tensor x,
                                             Tensor weight, Tensor rstd, double, double offset,
                                             int64_t grad_mask) {
  return rms_norm_backward_with(
      grad_y, grad_x, x, weight, weight.scalar_type(), rstd, offset, grad_mask,
      [](const RmsNormArgs& args, Tensor&) { kernels().rms_norm_backward(args); });
}

}  // namespace llama_fast
