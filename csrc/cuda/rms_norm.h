// Arguments of the RMSNorm kernels: those of the CPU's, in device memory. Types are not double.
#pragma once

#include "cpu/rms_norm.h"
#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

void rms_norm_forward(const Queue& queue, const RmsNormArgs& args);

}  // namespace cuda
}  // namespace llama_fast
