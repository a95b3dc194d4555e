// Facts about the GPU that kernels are launched on; asked once for each.
#include "cuda/device.h"

#ifndef LLAMA_FAST_EMULATION  // emulation.cpp has its own

#include <mutex>
#include <vector>

namespace llama_fast {
namespace cuda {

Gpu gpu_of(const Queue& queue) {
  static std::mutex mutex;
  static std::vector<Gpu> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto device = static_cast<size_t>(queue.device);
  if (known.size() <= device) known.resize(device + 1, Gpu{0, 0, 0});
  if (known[device].arch == 0) {
    const auto fact = [&](cudaDeviceAttr which) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, which, queue.device), "cudaDeviceGetAttribute");
      return value;
    };
    known[device] = {
        10 * fact(cudaDevAttrComputeCapabilityMajor) + fact(cudaDevAttrComputeCapabilityMinor),
        fact(cudaDevAttrMultiProcessorCount), fact(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  }
  return known[device];
}

}  // namespace cuda
}  // namespace llama_fast

#endif
