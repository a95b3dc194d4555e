// Registers the CPU kernels with PyTorch's dispatcher through the libtorch stable ABI, so that
// one binary serves torch 2.10 and later. The schemas are declared in llama_fast/ops/_library.py.
#include "glue/ops.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "glue/output_cache.h"

namespace llama_fast {

void run_parallel(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, body, context));
}

int num_threads() {
  uint32_t threads = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return static_cast<int>(threads);
}

namespace {
std::string isa() { return kernels().isa; }
}  // namespace

}  // namespace llama_fast

STABLE_TORCH_LIBRARY_IMPL(llama_fast, CPU, m) {
  m.impl("attention", TORCH_BOX(&llama_fast::attention));
  m.impl("attention_backward", TORCH_BOX(&llama_fast::attention_backward));
  m.impl("attention_decode", TORCH_BOX(&llama_fast::attention_decode));
  m.impl("cross_entropy", TORCH_BOX(&llama_fast::cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&llama_fast::cross_entropy_backward));
  m.impl("cross_entropy_inplace", TORCH_BOX(&llama_fast::cross_entropy_inplace));
  m.impl("decode_layers", TORCH_BOX(&llama_fast::decode_layers));
  m.impl("linear", TORCH_BOX(&llama_fast::linear));
  m.impl("linear_rows", TORCH_BOX(&llama_fast::linear_rows));
  m.impl("rms_norm", TORCH_BOX(&llama_fast::rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&llama_fast::rms_norm_backward));
  m.impl("rope", TORCH_BOX(&llama_fast::rope));
  m.impl("swiglu", TORCH_BOX(&llama_fast::swiglu));
  m.impl("swiglu_backward", TORCH_BOX(&llama_fast::swiglu_backward));
  m.impl("linear_cross_entropy", TORCH_BOX(&llama_fast::linear_cross_entropy));
}

STABLE_TORCH_LIBRARY_IMPL(llama_fast, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&llama_fast::isa));
  m.impl("empty_cache", TORCH_BOX(&llama_fast::empty_cache));
}
