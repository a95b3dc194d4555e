// Packing for bfmmla: a step of a panel is four numbers of one row (of A) or column (of B), and two
// neighbouring elements fill a register.
#pragma once

#include "cpu/matmul/operands.h"

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// `pack_panel_transposed`: panel column c is row c of the source.
inline void pack_quads_transposed(const void* source, int64_t stride, int64_t rows, int64_t numbers,
                                  uint64_t* panel, int64_t width) {
  const auto* from = static_cast<const uint16_t*>(source);
  const int64_t kk = ceil_div(numbers, 4);
  const auto two_steps = [&](int64_t row, int64_t k) {
    uint16_t part[8] = {};
    const int64_t left = numbers - 4 * k;
    if (row >= rows || left <= 0) return vdupq_n_u64(0);
    const uint16_t* p = from + row * stride + 4 * k;
    if (left >= 8) return vreinterpretq_u64_u16(vld1q_u16(p));
    std::memcpy(part, p, static_cast<size_t>(left) * sizeof *part);
    return vreinterpretq_u64_u16(vld1q_u16(part));
  };
  for (int64_t c = 0; c < width; c += 2)
    for (int64_t k = 0; k < kk; k += 2) {
      const uint64x2_t x = two_steps(c, k), y = two_steps(c + 1, k);
      vst1q_u64(panel + k * width + c, vzip1q_u64(x, y));
      if (k + 1 < kk) vst1q_u64(panel + (k + 1) * width + c, vzip2q_u64(x, y));
    }
}

// `pack_panel_along`: panel step k is rows 4 k to 4 k + 3 of the source.
inline void pack_quads_along(const void* source, int64_t stride, int64_t rows, int64_t columns,
                             uint64_t* panel, int64_t width) {
  constexpr int64_t lanes = kLanes<float>;
  const auto* from = static_cast<const uint16_t*>(source);
  for (int64_t r = 0; r < rows; r += 4, panel += width)
    for (int64_t c = 0; c < width; c += lanes) {
      vec_u16 numbers[4] = {};
      const int64_t count = min(columns - c, lanes);
      for (int64_t i = 0; i < min(rows - r, 4) && count > 0; ++i) {
        const uint16_t* p = from + (r + i) * stride + c;
        if (count == lanes)
          std::memcpy(&numbers[i], p, sizeof numbers[i]);
        else
          std::memcpy(&numbers[i], p, static_cast<size_t>(count) * sizeof *p);
      }
      store_steps(numbers, panel + c);
    }
}

// The sum of the four numbers of a step.
inline float sum_of_step(uint64_t step) {
  const uint64x1_t quad = vcreate_u64(step);
  const vec<float> v = widen(bf16{}, (vec_u16)quad);
  return reduce_add<float>(v);
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
