// Registers the CUDA kernels. Triton's are registered for the same key later, from Python, which
// keeps these and calls them where they are chosen (llama_fast/ops/_cuda.py).
#include "cuda/glue/ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(llama_fast, CUDA, m) {
  m.impl("rms_norm", TORCH_BOX(&llama_fast::cuda::rms_norm));
}
