// Registers the CUDA kernels. Triton's are registered for the same key later, from Python, which
// keeps these and calls them where they are chosen (llama_fast/ops/_cuda.py).
#include "cuda/glue/ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(llama_fast, CUDA, m) {
  m.impl("attention_decode", TORCH_BOX(&llama_fast::cuda::attention_decode));
  m.impl("cross_entropy", TORCH_BOX(&llama_fast::cuda::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&llama_fast::cuda::cross_entropy_backward));
  m.impl("cross_entropy_inplace", TORCH_BOX(&llama_fast::cuda::cross_entropy_inplace));
  m.impl("rms_norm", TORCH_BOX(&llama_fast::cuda::rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&llama_fast::cuda::rms_norm_backward));
  m.impl("rope", TORCH_BOX(&llama_fast::cuda::rope));
}
