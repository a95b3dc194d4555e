// Arguments of the rotary position kernel: those of the CPU's, in device memory, and not double.
#pragma once

#include "cpu/rope.h"
#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

void rope(const Queue& queue, const RopeArgs& args);

}  // namespace cuda
}  // namespace llama_fast
