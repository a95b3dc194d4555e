// The GPU that kernels are launched on, and its stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/launch.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace cuda {

inline void expect_narrow(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() != ScalarType::Double,
                  "llama_fast: the CUDA kernels do not compute in float64");
}

// Nothing tells a kernel that memory is another device's.
inline void expect_beside(const Tensor& like, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() &&
                      (!t.is_cuda() || t.get_device_index() == like.get_device_index()),
                  "llama_fast: CUDA kernels take tensors on one GPU");
}
inline void expect_beside(const Tensor& like, const OptionalTensor& t) {
  if (t.has_value()) expect_beside(like, *t);
}

// Makes t's GPU the current one, and says which stream to launch on.
class OnDeviceOf {
 public:
  template <class... Others>
  explicit OnDeviceOf(const Tensor& t, const Others&... others) : OnDeviceOf(t) {
    (expect_beside(t, others), ...);
  }
  explicit OnDeviceOf(const Tensor& t);
  const Queue& queue() const { return queue_; }

 private:
  Queue queue_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

}  // namespace cuda
}  // namespace llama_fast
