// Streaming stores, which bypass the caches, for large outputs that are not read soon: an ordinary
// store first reads the cache line that it overwrites.
#pragma once

#include "cpu/simd.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

#if defined(__AVX2__)
constexpr bool kCanStream = true;
#else
constexpr bool kCanStream = false;
#endif

// store_acc to a p that is aligned to the bytes stored; stream_fence() before others read them.
template <class T>
LF_INLINE void stream_acc(T* p, vec<acc_t<T>> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)narrow(T{}, v));
  } else {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 2) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)narrow(T{}, v));
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
  }
#else
  store_acc(p, v);
#endif
}

LF_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
