// The GPU and the stream that kernels are launched on, and what the CUDA operators ask of tensors.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/launch.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace cuda {

inline void expect_no_float64(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() != ScalarType::Double,
                  "llama_fast: CUDA kernels: expected float32, bfloat16 or float16, got float64");
}

// A kernel cannot tell that memory belongs to another device.
inline void expect_same_device(const Tensor& like, const Tensor& t) {
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() &&
                      (!t.is_cuda() || t.get_device_index() == like.get_device_index()),
                  "llama_fast: CUDA kernels: expected all tensors on one GPU");
}
inline void expect_same_device(const Tensor& like, const OptionalTensor& t) {
  if (t.has_value()) expect_same_device(like, *t);
}

// Makes the GPU of t the current one while it lives.
class DeviceScope {
 public:
  template <class... Others>
  explicit DeviceScope(const Tensor& t, const Others&... others) : DeviceScope(t) {
    (expect_same_device(t, others), ...);
  }
  explicit DeviceScope(const Tensor& t);
  // Where to launch kernels: the current stream of that GPU.
  const Queue& queue() const { return queue_; }

 private:
  Queue queue_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

}  // namespace cuda
}  // namespace llama_fast
