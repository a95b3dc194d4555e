// Arithmetic of sizes and indices.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

LF_INLINE constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
LF_INLINE constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
LF_INLINE constexpr int64_t ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }
LF_INLINE constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return ceil_div(n, multiple) * multiple;
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
