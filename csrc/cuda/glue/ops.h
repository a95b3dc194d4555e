// The functions behind the operators on a GPU; see csrc/glue/ops.h.
#pragma once

#include "glue/ops.h"

namespace llama_fast {
namespace cuda {

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, Tensor weight, OptionalTensor residual,
                                            double eps, double offset);

}  // namespace cuda
}  // namespace llama_fast
