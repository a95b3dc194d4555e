// How the host launches kernels, and what it may ask about the GPU: plain C++.
#pragma once

#include <cstdint>

namespace llama_fast {
namespace cuda {

// The facts that grids, splits and clusters depend on.
struct Gpu {
  int arch;              // 80 for sm_80 (A100), 90 for sm_90 (H100, H200), 100 for sm_100 (B200)
  int processors;        // streaming multiprocessors
  int64_t shared_bytes;  // that a block can have
};

// Where kernels are launched.
struct Queue {
  int device;    // the GPU's number
  void* stream;  // a cudaStream_t
};

Gpu gpu_of(const Queue& queue);

struct Launch {
  const char* name;  // for error messages
  int64_t grid[3];   // blocks; the first is a multiple of `cluster`
  int threads;       // of a block: whole warps
  int cluster;       // blocks along the first axis that share memory; 1: no cluster
  int64_t shared_bytes;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace cuda
}  // namespace llama_fast
