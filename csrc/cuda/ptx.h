// What kernels use of the GPU beyond C++. emulation.h has the same names for the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/types.h"
#include "cuda/launch.h"

#define LF_KERNEL(max_threads) static __global__ void __launch_bounds__(max_threads, 1)
#define LF_DEVICE __device__ __forceinline__

namespace llama_fast {
namespace cuda {

struct alignas(16) Chunk {
  uint32_t word[4];
};

// --- indices ---------------------------------------------------------------------------------

LF_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
LF_DEVICE int threads() { return static_cast<int>(blockDim.x); }
LF_DEVICE int64_t block_x() { return blockIdx.x; }
LF_DEVICE int64_t block_y() { return blockIdx.y; }
LF_DEVICE int64_t block_z() { return blockIdx.z; }
LF_DEVICE int64_t blocks_x() { return gridDim.x; }
LF_DEVICE int64_t blocks_y() { return gridDim.y; }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
LF_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
LF_DEVICE int cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}
#else  // no clusters: each block is one
LF_DEVICE int cluster_rank() { return 0; }
LF_DEVICE int cluster_size() { return 1; }
#endif

// --- collectives -----------------------------------------------------------------------------

constexpr uint32_t kAllLanes = 0xffffffff;

LF_DEVICE void sync_block() { __syncthreads(); }
LF_DEVICE void sync_warp() { __syncwarp(); }
// Waits for all threads of all blocks of the cluster and makes their writes to shared memory
// visible.
LF_DEVICE void sync_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The dynamic shared memory of the block, which uses no static one.
LF_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char llama_fast_shared[];
  return llama_fast_shared;
}

// The address, in the shared memory of block `rank` of the cluster, that corresponds to p in this
// block.
template <class T>
LF_DEVICE T* distributed(T* p, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint64_t there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return p;
#endif
}

template <class T>
LF_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <class T>
LF_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
LF_DEVICE uint32_t ballot(bool value) { return __ballot_sync(kAllLanes, value); }

// --- memory ----------------------------------------------------------------------------------

LF_DEVICE Chunk load_chunk(const void* p) { return *static_cast<const Chunk*>(p); }
LF_DEVICE void store_chunk(void* p, Chunk chunk) { *static_cast<Chunk*>(p) = chunk; }
// For memory that is not used again: leaves other data in the caches.
LF_DEVICE Chunk load_chunk_once(const void* p) {
  Chunk c;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(c.word[0]), "=r"(c.word[1]), "=r"(c.word[2]), "=r"(c.word[3])
               : "l"(p)
               : "memory");
  return c;
}
LF_DEVICE void store_chunk_once(void* p, Chunk c) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(c.word[0]),
               "r"(c.word[1]), "r"(c.word[2]), "r"(c.word[3])
               : "memory");
}

// Copies 16 bytes from global to shared memory, zeros unless `valid`. The calling thread sees them
// after copy_async_wait(), other threads after a barrier that follows.
LF_DEVICE void copy_async(void* shared, const void* global, bool valid = true) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(bytes)
               : "memory");
}
LF_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending groups of copies of this thread are in flight.
template <int kPending>
LF_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- numbers ---------------------------------------------------------------------------------

LF_DEVICE float widen(float v) { return v; }
LF_DEVICE float widen(bf16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }
LF_DEVICE float widen(f16 v) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
}

template <class T>
LF_DEVICE T narrow(float v);
template <>
LF_DEVICE float narrow<float>(float v) {
  return v;
}
template <>
LF_DEVICE bf16 narrow<bf16>(float v) {
  bf16 n;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(n.bits) : "f"(v));
  return n;
}
template <>
LF_DEVICE f16 narrow<f16>(float v) {
  f16 n;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(n.bits) : "f"(v));
  return n;
}

// Two numbers in a register, the first in its lower half.
template <class T>
LF_DEVICE uint32_t pack(float low, float high);
template <>
LF_DEVICE uint32_t pack<bf16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
LF_DEVICE uint32_t pack<f16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// 2^x by the special function unit: about two units in the last place.
LF_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// A product that is rounded before anything is added to it.
LF_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }
LF_DEVICE float divide_fast(float a, float b) { return __fdividef(a, b); }

// --- matrices --------------------------------------------------------------------------------

// d += a b: 16x16 times 16x8, the fragments laid out as in the PTX manual (mma.m16n8k16).
template <class T>
LF_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define LF_MULTIPLY_ADD(T, name)                                                                  \
  template <>                                                                                     \
  LF_DEVICE void multiply_add<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                           \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));             \
  }
LF_MULTIPLY_ADD(bf16, "bf16")
LF_MULTIPLY_ADD(f16, "f16")
#undef LF_MULTIPLY_ADD

// Loads 8x8 matrices of 16-bit numbers from shared memory (ldmatrix). Lane i passes the address of
// row i % 8, 16 bytes, of matrix i / 8. It receives the elements 2 (i % 4) and 2 (i % 4) + 1 of row
// i / 4 of each matrix, or of column i / 4 with `_transposed`.
#define LF_LOAD_MATRICES(name, suffix)                                                          \
  template <int kMatrices>                                                                      \
  LF_DEVICE void name(uint32_t (&to)[kMatrices], const void* row) {                             \
    static_assert(kMatrices == 2 || kMatrices == 4, "two or four at once");                     \
    const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));                     \
    if constexpr (kMatrices == 2) {                                                             \
      asm volatile("ldmatrix.sync.aligned.m8n8.x2" suffix ".shared.b16 {%0, %1}, [%2];"         \
                   : "=r"(to[0]), "=r"(to[1])                                                   \
                   : "r"(from)                                                                  \
                   : "memory");                                                                 \
    } else {                                                                                    \
      asm volatile("ldmatrix.sync.aligned.m8n8.x4" suffix ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])                         \
                   : "r"(from)                                                                  \
                   : "memory");                                                                 \
    }                                                                                           \
  }
LF_LOAD_MATRICES(load_matrices, "")
LF_LOAD_MATRICES(load_matrices_transposed, ".trans")
#undef LF_LOAD_MATRICES

// --- host ------------------------------------------------------------------------------------

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error("llama_fast: " + std::string(what) + ": " + cudaGetErrorString(error));
}

template <class... P, class... A>
void launch(const Queue& queue, const Launch& how, void (*kernel)(P...), A... arguments) {
  if (how.shared_bytes > 48 << 10)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(how.shared_bytes)),
          how.name);
  if (how.cluster > 8)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          how.name);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(how.grid[0]), static_cast<unsigned>(how.grid[1]),
                        static_cast<unsigned>(how.grid[2]));
  config.blockDim = dim3(static_cast<unsigned>(how.threads));
  config.dynamicSmemBytes = static_cast<size_t>(how.shared_bytes);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(how.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = how.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), how.name);
}

}  // namespace cuda
}  // namespace llama_fast
