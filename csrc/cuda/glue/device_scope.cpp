#include "cuda/glue/device_scope.h"

#include <dlfcn.h>

namespace llama_fast {
namespace cuda {
namespace {

// Looked up at run time: a torch without CUDA has no such function, and the library loads there.
void* current_stream(int device) {
  using GetStream = AOTITorchError (*)(int32_t device, void** stream);
  static const auto get = [] {
    constexpr const char* name = "aoti_torch_get_current_cuda_stream";
    void* function = dlsym(RTLD_DEFAULT, name);
    void* library = function ? nullptr : dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<GetStream>(library ? dlsym(library, name) : function);
  }();
  STD_TORCH_CHECK(get != nullptr, "llama_fast: this torch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

}  // namespace

DeviceScope::DeviceScope(const Tensor& t) : queue_{0, nullptr} {
#ifdef LLAMA_FAST_EMULATION
  STD_TORCH_CHECK(!t.is_cuda(), "llama_fast: emulated kernels: expected tensors on the CPU");
  return;
#endif
  STD_TORCH_CHECK(t.is_cuda(), "llama_fast: CUDA kernels: expected tensors on a GPU");
  queue_.device = t.get_device_index();
  guard_.emplace(queue_.device);
  queue_.stream = current_stream(queue_.device);
}

}  // namespace cuda
}  // namespace llama_fast
