// Registers the CPU kernels with PyTorch's dispatcher through the libtorch stable ABI, so that one
// binary serves torch 2.10 and later. llama_fast/ops/backends/table.py declares the schemas.
#include "glue/ops.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "glue/box.h"
#include "glue/memory.h"

namespace llama_fast {

namespace {

// An exception that a kernel throws, to be thrown again in another thread. As std::exception_ptr,
// whose functions are newer than glue/old_runtime.cpp allows. Keeping it allocates nothing.
class KeptError {
 public:
  // To be called in a handler of the exception.
  void keep() {
    try {
      throw;
    } catch (const std::bad_alloc&) {
      throw_again_ = [](const char*) { throw std::bad_alloc(); };
    } catch (const std::invalid_argument& error) {
      set<std::invalid_argument>(error);
    } catch (const std::out_of_range& error) {
      set<std::out_of_range>(error);
    } catch (const std::length_error& error) {
      set<std::length_error>(error);
    } catch (const std::exception& error) {
      set<std::runtime_error>(error);
    }
  }

  void throw_again() const { throw_again_(message_); }

 private:
  template <class Error>
  void set(const std::exception& error) {
    std::snprintf(message_, sizeof(message_), "%s", error.what());
    throw_again_ = [](const char* message) { throw Error(message); };
  }

  void (*throw_again_)(const char* message) = nullptr;
  char message_[1024];
};

}  // namespace

void run_parallel(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  // torch would turn an exception into an error code: the first one is kept and thrown again here.
  struct Guarded {
    void (*body)(int64_t, int64_t, void*);
    void* context;
    std::atomic<bool> failed{false};
    KeptError error;
  } guarded{body, context, {}, {}};
  const auto run = [](int64_t begin, int64_t end, void* given) {
    auto* const g = static_cast<Guarded*>(given);
    const ScratchInUse in_use;
    try {
      g->body(begin, end, g->context);
    } catch (...) {
      if (!g->failed.exchange(true)) g->error.keep();
    }
  };
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, run, &guarded));
  if (guarded.failed) guarded.error.throw_again();
}

int num_threads() {
  uint32_t threads = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return static_cast<int>(threads);
}

namespace {
std::string isa() { return kernels().isa; }

int64_t empty_cache() { return static_cast<int64_t>(free_idle_memory()); }

template <Boxed* function>
void with_scratch(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const ScratchInUse in_use;
  function(stack, inputs, outputs);
}
}  // namespace

}  // namespace llama_fast

#define LF_CPU_BOX(function) \
  (&llama_fast::with_clear_errors<&llama_fast::with_scratch<&TORCH_BOX(function)>>)

STABLE_TORCH_LIBRARY_IMPL(llama_fast, CPU, m) {
  m.impl("attention", LF_CPU_BOX(&llama_fast::attention));
  m.impl("attention_backward", LF_CPU_BOX(&llama_fast::attention_backward));
  m.impl("attention_decode", LF_CPU_BOX(&llama_fast::attention_decode));
  m.impl("cross_entropy", LF_CPU_BOX(&llama_fast::cross_entropy));
  m.impl("cross_entropy_backward", LF_CPU_BOX(&llama_fast::cross_entropy_backward));
  m.impl("cross_entropy_inplace", LF_CPU_BOX(&llama_fast::cross_entropy_inplace));
  m.impl("cu_seqlens", LF_CPU_BOX(&llama_fast::cu_seqlens));
  m.impl("decode_layers", LF_CPU_BOX(&llama_fast::decode_layers));
  m.impl("linear", LF_CPU_BOX(&llama_fast::linear));
  m.impl("linear_rows", LF_CPU_BOX(&llama_fast::linear_rows));
  m.impl("pack_sequences", LF_CPU_BOX(&llama_fast::pack_sequences));
  m.impl("rms_norm", LF_CPU_BOX(&llama_fast::rms_norm));
  m.impl("rms_norm_backward", LF_CPU_BOX(&llama_fast::rms_norm_backward));
  m.impl("rope", LF_CPU_BOX(&llama_fast::rope));
  m.impl("swiglu", LF_CPU_BOX(&llama_fast::swiglu));
  m.impl("swiglu_backward", LF_CPU_BOX(&llama_fast::swiglu_backward));
  m.impl("linear_cross_entropy", LF_CPU_BOX(&llama_fast::linear_cross_entropy));
}

STABLE_TORCH_LIBRARY_IMPL(llama_fast, CompositeExplicitAutograd, m) {
  m.impl("build_info", LF_CPU_BOX(&llama_fast::build_info));
  m.impl("constants", LF_CPU_BOX(&llama_fast::constants));
  m.impl("cpu_features", LF_CPU_BOX(&llama_fast::cpu_features));
  m.impl("isa", LF_CPU_BOX(&llama_fast::isa));
  m.impl("empty_cache", LF_CPU_BOX(&llama_fast::empty_cache));
}
