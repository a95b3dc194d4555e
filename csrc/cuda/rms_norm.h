// The RMSNorm kernels: arguments as on the CPU, in device memory and without float64.
#pragma once

#include "cpu/rms_norm.h"
#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

void rms_norm_forward(const Queue& queue, const RmsNormArgs& args);

// `partial`: floats for the sums of blocks of rows, as many rows of (E) as rms_norm_parts() says;
// used where dweight is wanted. dweight may be double.
int64_t rms_norm_parts(const Queue& queue, const RmsNormArgs& args);
void rms_norm_backward(const Queue& queue, const RmsNormArgs& args, DType dweight_dtype,
                       float* partial);

}  // namespace cuda
}  // namespace llama_fast
