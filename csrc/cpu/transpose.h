// The transpose of as many registers as a register has lanes.
#pragma once

#include <utility>

#include "cpu/simd.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

template <bool kHigh, class V, size_t... I>
LF_INLINE V interleave(V a, V b, std::index_sequence<I...>) {
  constexpr size_t n = sizeof...(I), first = kHigh ? n / 2 : 0;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (first + I / 2 + (I % 2) * n)...);
#else  // GCC has the other one from version 12 on only
  using Index = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, vec<Index>{static_cast<Index>(first + I / 2 + (I % 2) * n)...});
#endif
}

template <class A>
LF_INLINE void transpose(vec<A>* rows) {
  constexpr int n = kLanes<A>;
  using Lanes = std::make_index_sequence<n>;
  for (int round = 1; round < n; round *= 2) {
    vec<A> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<false>(rows[i], rows[i + n / 2], Lanes());
      next[2 * i + 1] = interleave<true>(rows[i], rows[i + n / 2], Lanes());
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
