// All that kernels use of the GPU: from ptx.h, or from emulation.h where the kernels are compiled
// for the CPU (LLAMA_FAST_EMULATION).
//
//   LF_KERNEL(max_threads) name(arguments) { ... }     launch(queue, how, name, arguments...)
//   thread() threads()  block_x() ... blocks_y()       blocks have one dimension
//   sync_block() sync_warp()  shuffle() shuffle_xor() ballot()        all 32 lanes take part
//   shared_memory()  cluster_rank() cluster_size() sync_cluster() distributed(p, rank)
//   Chunk: 16 bytes; load_chunk() store_chunk(), with _once for memory that is not used again
//   copy_async() copy_async_commit() copy_async_wait<n>()             global to shared, 16 bytes
//   widen(v) narrow<T>(v) pack<T>(low, high)  exp2_fast() divide_fast() multiply()
//   multiply_add<T>(d, a, b)  load_matrices() load_matrices_transposed()
#pragma once

#include "cpu/rows.h"

#ifdef LLAMA_FAST_EMULATION
#include "cuda/emulation.h"
#else
#include "cuda/ptx.h"
#endif

namespace llama_fast {
namespace cuda {

constexpr float kLog2e = 1.4426950408889634f;

LF_DEVICE int lane() { return thread() % 32; }
LF_DEVICE int warp() { return thread() / 32; }

// How many T fill a chunk.
template <class T>
constexpr int kPerChunk = 16 / static_cast<int>(sizeof(T));

// A chunk as numbers, and back.
template <class T>
LF_DEVICE void unpack(Chunk chunk, float (&to)[kPerChunk<T>]) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) memcpy(&to[i], &chunk.word[i], 4);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = widen(T{static_cast<uint16_t>(chunk.word[i])});
      to[2 * i + 1] = widen(T{static_cast<uint16_t>(chunk.word[i] >> 16)});
    }
  }
}

template <class T>
LF_DEVICE Chunk pack_chunk(const float (&from)[kPerChunk<T>]) {
  Chunk chunk;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      memcpy(&chunk.word[i], &from[i], 4);
    } else {
      chunk.word[i] = pack<T>(from[2 * i], from[2 * i + 1]);
    }
  }
  return chunk;
}

// W contiguous numbers of type U, as floats. p is a multiple of W sizeof(U) bytes, at most of 16.
template <class U, int W>
LF_DEVICE void load_numbers(const U* p, float (&to)[W]) {
  if constexpr (W == 1) {
    to[0] = widen(*p);
  } else if constexpr (W * sizeof(U) == 8) {
    const uint64_t bits = *reinterpret_cast<const uint64_t*>(p);
#pragma unroll
    for (int i = 0; i < W; ++i) to[i] = widen(U{static_cast<uint16_t>(bits >> (16 * i))});
  } else {
    constexpr int n = kPerChunk<U>;
#pragma unroll
    for (int i = 0; i < W; i += n) {
      float part[n];
      unpack<U>(load_chunk(p + i), part);
#pragma unroll
      for (int j = 0; j < n; ++j) to[i + j] = part[j];
    }
  }
}

template <class U, int W>
LF_DEVICE void store_numbers(U* p, const float (&from)[W]) {
  if constexpr (W == 1) {
    *p = narrow<U>(from[0]);
  } else if constexpr (W * sizeof(U) == 8) {
    const uint64_t low = pack<U>(from[0], from[1]), high = pack<U>(from[2], from[3]);
    *reinterpret_cast<uint64_t*>(p) = low | high << 32;
  } else {
    constexpr int n = kPerChunk<U>;
#pragma unroll
    for (int i = 0; i < W; i += n) {
      float part[n];
#pragma unroll
      for (int j = 0; j < n; ++j) part[j] = from[i + j];
      store_chunk(p + i, pack_chunk<U>(part));
    }
  }
}

// The same, of a type that is known at run time; not double.
template <int W>
LF_DEVICE void load_numbers(const void* data, DType type, int64_t at, float (&to)[W]) {
  if (type == DType::f32) {
    load_numbers(static_cast<const float*>(data) + at, to);
  } else if (type == DType::bf16) {
    load_numbers(static_cast<const bf16*>(data) + at, to);
  } else {
    load_numbers(static_cast<const f16*>(data) + at, to);
  }
}

// The offset of a row; see csrc/cpu/rows.h.
LF_DEVICE int64_t row_offset(const RowShape& shape, const RowTensor& rows, int64_t row) {
  int64_t offset = 0;
  for (int d = shape.dims - 1; d > 0; --d) {
    offset += row % shape.sizes[d] * rows.strides[d];
    row /= shape.sizes[d];
  }
  return shape.dims > 0 ? offset + row * rows.strides[0] : offset;
}

// Sum over groups of `width` lanes, a power of two: in the same order in each lane.
template <class T>
LF_DEVICE T warp_sum(T value, int width = 32) {
  for (int mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

LF_DEVICE float warp_max(float value, int width = 32) {
  for (int mask = width / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// e^x, as accurate as numbers of type T need it.
template <class T>
LF_DEVICE float exp_for(float x) {
  return sizeof(T) == 2 ? exp2_fast(x * kLog2e) : expf(x);
}

}  // namespace cuda
}  // namespace llama_fast
