// New tensors on the device of another, and the stream that its kernels are launched on.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "cuda/launch.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace cuda {

Tensor new_strided(const Tensor& like, const int64_t* sizes, const int64_t* strides, int64_t dims,
                   ScalarType type);

// Contiguous.
inline Tensor new_tensor(const Tensor& like, const int64_t* sizes, int64_t dims, ScalarType type) {
  int64_t strides[kMaxDims];
  uint64_t stride = 1;  // may overflow, where torch says so
  for (int64_t d = dims - 1; d >= 0; --d) {
    strides[d] = static_cast<int64_t>(stride);
    stride *= sizes[d] > 1 ? static_cast<uint64_t>(sizes[d]) : 1;
  }
  return new_strided(like, sizes, strides, dims, type);
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType type) {
  return new_tensor(like, sizes.begin(), static_cast<int64_t>(sizes.size()), type);
}

// For what is not wanted, or not there.
inline Tensor no_tensor(const Tensor& like, ScalarType type) { return new_tensor(like, {0}, type); }

// The shape of t and the order of its heads: a (B,H,S,D) view of (B,S,H,D) stays one. Everything
// else is contiguous. `empty_like_heads` in ops/_autograd.py says the same.
inline Tensor new_like_heads(const Tensor& t, ScalarType type) {
  if (t.dim() != 4 || t.stride(1) >= t.stride(2))
    return new_tensor(t, t.sizes().data(), t.dim(), type);
  const auto at_least_one = [](int64_t size) { return size > 1 ? size : 1; };
  const int64_t head = at_least_one(t.size(3)), position = head * at_least_one(t.size(1));
  const int64_t strides[] = {position * at_least_one(t.size(2)), head, position, 1};
  return new_strided(t, t.sizes().data(), strides, 4, type);
}

// As in glue/tensors.h, on the device of t.
inline Tensor as_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}
inline Tensor with_rows(const Tensor& t) {
  const bool readable = last_is_contiguous(t) && t.dim() <= kMaxRowDims + 1;
  return readable || t.is_contiguous() ? t : torch::stable::contiguous(t);
}

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
