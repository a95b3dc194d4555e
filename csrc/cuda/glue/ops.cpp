// Registers the CUDA kernels. Triton's are registered for the same key later, from Python, which
// keeps these and calls them where they are chosen (llama_fast/ops/backends/cuda.py).
#include "cuda/glue/ops.h"

#include <torch/csrc/stable/library.h>

#include "glue/box.h"

STABLE_TORCH_LIBRARY_IMPL(llama_fast, CUDA, m) {
  m.impl("attention_decode", LF_BOX(&llama_fast::cuda::attention_decode));
  m.impl("cross_entropy", LF_BOX(&llama_fast::cuda::cross_entropy));
  m.impl("cross_entropy_backward", LF_BOX(&llama_fast::cuda::cross_entropy_backward));
  m.impl("cross_entropy_inplace", LF_BOX(&llama_fast::cuda::cross_entropy_inplace));
  m.impl("rms_norm", LF_BOX(&llama_fast::cuda::rms_norm));
  m.impl("rms_norm_backward", LF_BOX(&llama_fast::cuda::rms_norm_backward));
  m.impl("rope", LF_BOX(&llama_fast::cuda::rope));
}
