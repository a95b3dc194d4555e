// Element types of the tensors that kernels read and write, without torch headers.
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

// f(T{}) with the element type T of that dtype.
template <class F>
inline void with_element_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(double{});
    case DType::f32:
      return f(float{});
    case DType::bf16:
      return f(bf16{});
    case DType::f16:
      return f(f16{});
  }
}

}  // namespace llama_fast
