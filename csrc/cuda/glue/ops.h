// The functions behind the operators on a GPU; see csrc/glue/ops.h.
#pragma once

#include "glue/ops.h"

namespace llama_fast {
namespace cuda {

// Each has the parameters and results of the CPU function of that name.
decltype(llama_fast::attention_decode) attention_decode;
decltype(llama_fast::cross_entropy) cross_entropy;
decltype(llama_fast::cross_entropy_backward) cross_entropy_backward;
decltype(llama_fast::cross_entropy_inplace) cross_entropy_inplace;
decltype(llama_fast::rms_norm) rms_norm;
decltype(llama_fast::rms_norm_backward) rms_norm_backward;
decltype(llama_fast::rope) rope;

}  // namespace cuda
}  // namespace llama_fast
