// The transpose of as many registers as a register has lanes, and the sums of their lanes.
//
// Both go in log2(lanes) rounds. A round exchanges parts between registers that are `Half` apart:
// of the blocks of Half x Half numbers in them, [a0 a1; b0 b1] becomes [a0 b0; a1 b1].
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/simd.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// The source of lane i in the first (second) register after the exchange; lanes of b are numbered
// after those of a.
template <class T>
constexpr int exchanged_lane(int half, bool second, int i) {
  const bool from_b = (i & half) != 0;
  if (second) return from_b ? kLanes<T> + i : i + half;
  return from_b ? kLanes<T> + i - half : i;
}

template <class T, int Half, bool kSecond, size_t... I>
LF_INLINE vec<T> exchange(vec<T> a, vec<T> b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, exchanged_lane<T>(Half, kSecond, int(I))...);
#else  // GCC has __builtin_shufflevector only since version 12
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, vec<Index>{Index{exchanged_lane<T>(Half, kSecond, int(I))}...});
#endif
}

template <class T, int Half, bool kSecond>
LF_INLINE vec<T> exchange(vec<T> a, vec<T> b) {
  return exchange<T, Half, kSecond>(a, b, std::make_index_sequence<kLanes<T>>());
}

// Transposes a square of registers. Lanes may hold any 4 (8) bytes, not only numbers of type T.
template <class T, int Half = kLanes<T> / 2>
LF_INLINE void transpose(vec<T>* rows) {
  if constexpr (Half > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i)
      if (!(i & Half)) {
        const vec<T> a = rows[i], b = rows[i + Half];
        rows[i] = exchange<T, Half, false>(a, b);
        rows[i + Half] = exchange<T, Half, true>(a, b);
      }
    transpose<T, Half / 2>(rows);
  }
}

// For each of a square of registers: the sum of its lanes, in the lane of its number, in the order
// of reduce_add. Changes v.
template <class T, int Half = kLanes<T> / 2>
LF_INLINE vec<T> reduce_add_each(vec<T>* v) {
  if constexpr (Half == 0) {
    return v[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < Half; ++i)
      v[i] =
          exchange<T, Half, false>(v[i], v[i + Half]) + exchange<T, Half, true>(v[i], v[i + Half]);
    return reduce_add_each<T, Half / 2>(v);
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
