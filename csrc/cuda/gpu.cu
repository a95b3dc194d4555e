// Facts about the GPU that kernels are launched on, queried once for each GPU.
#include "cuda/device.h"

#ifndef LLAMA_FAST_EMULATION  // emulation.cpp has its own

#include <mutex>
#include <vector>

namespace llama_fast {
namespace cuda {

Gpu gpu_of(const Queue& queue) {
  static std::mutex mutex;
  static std::vector<Gpu> gpus;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto device = static_cast<size_t>(queue.device);
  if (gpus.size() <= device) gpus.resize(device + 1, Gpu{0, 0, 0});
  if (gpus[device].arch == 0) {
    const auto attribute = [&](cudaDeviceAttr which) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, which, queue.device), "cudaDeviceGetAttribute");
      return value;
    };
    gpus[device] = {10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                        attribute(cudaDevAttrComputeCapabilityMinor),
                    attribute(cudaDevAttrMultiProcessorCount),
                    attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  }
  return gpus[device];
}

}  // namespace cuda
}  // namespace llama_fast

#endif
