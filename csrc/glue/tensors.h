// New tensors, and tensors as rows for the ops that work row by row. CPU and GPU alike: a new
// tensor lies on the device of the one that it is made `like`.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cpu/rows.h"
#include "glue/ops.h"

namespace llama_fast {

constexpr int64_t kMaxDims = 64;  // torch's own limit

// float for float, bfloat16 and float16; double for double.
inline ScalarType accumulation_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// `type`, a floating type, int32 or int64, as the number that torch's C functions take.
int32_t shim_type(ScalarType type);

// A new tensor of a floating type, int32 or int64. On the CPU its memory comes from
// glue/output_cache.h if it is large. Throws std::runtime_error if memory runs out.
Tensor new_strided(const Tensor& like, const int64_t* sizes, const int64_t* strides, int64_t dims,
                   ScalarType type);

// A new contiguous tensor.
inline Tensor new_tensor(const Tensor& like, const int64_t* sizes, int64_t dims, ScalarType type) {
  int64_t strides[kMaxDims];
  uint64_t stride = 1;  // may overflow; then new_strided() throws
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

// A new contiguous tensor of zeros.
Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type);

// Working memory of a kernel besides thread_scratch(), 64-byte aligned; empty for zero bytes.
class WorkingMemory {
 public:
  WorkingMemory(const Tensor& like, size_t bytes) {
    if (bytes > 0)
      tensor_ = new_tensor(like, {static_cast<int64_t>((bytes + 7) / 8)}, ScalarType::Long);
  }
  void* data() const { return tensor_.has_value() ? tensor_->data_ptr() : nullptr; }

 private:
  OptionalTensor tensor_;
};

// Throws if a tensor, which may be expanded, has more than 2^48 elements. Below that, products
// of sizes with the sizes of a kernel's tiles do not overflow.
template <class... Tensors>
void expect_valid_sizes(const Tensors&... tensors) {
  const auto check = [](const Tensor& t) {
    int64_t left = int64_t{1} << 48;
    for (int64_t d = 0; d < t.dim(); ++d) left /= t.size(d) > 1 ? t.size(d) : 1;
    if (left > 0) return;
    std::string shape;
    for (int64_t d = 0; d < t.dim(); ++d) shape += (d > 0 ? ", " : "") + std::to_string(t.size(d));
    throw std::runtime_error(
        "llama_fast: expected tensors of at most 2^48 elements, got the shape (" + shape + ")");
  };
  (check(tensors), ...);
}

// An empty tensor, for an output that is not wanted.
inline Tensor empty_tensor(const Tensor& like, ScalarType type) {
  return new_tensor(like, {0}, type);
}

// A new tensor in the shape of t, but with `last` as its last dimension. It is a (B,H,S,D) view of
// (B,S,H,D) if t is one, else contiguous. `empty_like_heads` in ops/_autograd.py does
// the same.
inline Tensor new_like_heads(const Tensor& t, ScalarType type, int64_t last) {
  int64_t sizes[kMaxDims];
  std::copy_n(t.sizes().data(), t.dim(), sizes);
  if (t.dim() > 0) sizes[t.dim() - 1] = last;
  if (t.dim() != 4 || t.stride(1) >= t.stride(2)) return new_tensor(t, sizes, t.dim(), type);
  const auto at_least_one = [](int64_t size) { return size > 1 ? size : 1; };
  const int64_t head = at_least_one(last), position = head * at_least_one(sizes[1]);
  const int64_t strides[] = {position * at_least_one(sizes[2]), head, position, 1};
  return new_strided(t, sizes, strides, 4, type);
}

inline Tensor new_like_heads(const Tensor& t, ScalarType type) {
  return new_like_heads(t, type, t.dim() == 0 ? 1 : t.size(t.dim() - 1));
}

// t, of a floating type or int64, or a contiguous copy.
Tensor as_contiguous(const Tensor& t);

// t, or a copy of that type in the order of its heads.
Tensor as_type(const Tensor& t, ScalarType type);

// t, or a contiguous copy of that type.
inline Tensor contiguous_as(const Tensor& t, ScalarType type) {
  return as_contiguous(as_type(t, type));
}

inline bool last_is_contiguous(const Tensor& t) {
  return t.dim() == 0 || t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1;
}

// t, or a copy whose rows the kernels can read.
inline Tensor with_rows(const Tensor& t) {
  if (last_is_contiguous(t) && t.dim() <= kMaxRowDims + 1) return t;
  return as_contiguous(t);
}

// Merges dimensions of several tensors of one shape, so that few dimensions index the rows.
class RowMerger {
 public:
  explicit RowMerger(const Tensor& t) : sizes_(t.sizes().data()), dims_(t.dim() - 1) {}

  // `rows` is complete after merge(). t is new, or comes from with_rows().
  void add(const Tensor& t, RowTensor& rows) {
    rows.data = t.data_ptr();
    rows.dtype = dtype_of(t);
    strides_[count_] = t.strides().data();
    rows_[count_++] = &rows;
  }

  void merge(RowShape& shape) {
    for (int64_t d = 0; d < dims_; ++d) {
      if (sizes_[d] == 1) continue;
      const int last = shape.dims - 1;
      bool fits = last >= 0;
      for (int i = 0; i < count_ && fits; ++i)
        fits = rows_[i]->strides[last] == strides_[i][d] * sizes_[d];
      const int to = fits ? last : shape.dims++;
      STD_TORCH_CHECK(to < kMaxRowDims, "llama_fast: expected at most ", kMaxRowDims + 1,
                      " dimensions that cannot be merged");
      shape.sizes[to] = fits ? shape.sizes[to] * sizes_[d] : sizes_[d];
      for (int i = 0; i < count_; ++i) rows_[i]->strides[to] = strides_[i][d];
    }
  }

 private:
  const int64_t* sizes_;
  int64_t dims_;
  int count_ = 0;
  RowTensor* rows_[6];
  const int64_t* strides_[6];
};

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != b.size(d)) return false;
  return true;
}

}  // namespace llama_fast
