// Element types of the tensors that kernels read and write, free of torch headers.
#pragma once

#include <cstdint>

namespace llama_fast {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

enum class DType : int { f64, f32, bf16, f16 };

inline int64_t element_size(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

}  // namespace llama_fast
