// Tensors as rows of contiguous elements; the rows may lie anywhere in memory.
#pragma once

#include <cstdint>

#include "cpu/types.h"

namespace llama_fast {

constexpr int kMaxRowDims = 4;

// The dimensions that number the rows: all but the last, neighbours merged where the strides of all
// tensors allow it.
struct RowShape {
  int dims = 0;
  int64_t sizes[kMaxRowDims];
};

// A tensor with rows of that shape; data is null where an optional tensor is missing.
struct RowTensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t strides[kMaxRowDims];
};

// Pointer to the first element of a row.
template <class T>
inline T* row_pointer(const RowShape& shape, const RowTensor& rows, int64_t row) {
  int64_t offset = 0;
  for (int d = shape.dims - 1; d > 0; --d) {
    offset += row % shape.sizes[d] * rows.strides[d];
    row /= shape.sizes[d];
  }
  if (shape.dims > 0) offset += row * rows.strides[0];
  return static_cast<T*>(rows.data) + offset;
}

}  // namespace llama_fast
