// How blocks share a row of logits: plain C++. A chunk is the unit of access: 16 bytes of a row, or
// one element where classes are not contiguous.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

constexpr int64_t kRowScratch = 1024;  // bytes of shared memory for sums, beside those of the row
constexpr int kMaxThreads = 512;
constexpr int kMaxCluster = 8;  // supported by every GPU with clusters

// Threads for `chunks`, `each` of them a thread as long as there are enough threads.
inline int threads_for(int64_t chunks, int64_t each) {
  int threads = 32;
  while (threads < kMaxThreads && threads * each < chunks) threads *= 2;
  return threads;
}

// Loss and gradient with a row kept in the shared memory of its cluster.
struct ResidentPlan {
  bool fits;
  int cluster, threads;
  int64_t share;  // chunks of a block
  int64_t shared_bytes;
};

inline ResidentPlan resident_plan(const Gpu& gpu, int64_t tokens, int64_t chunks,
                                  int64_t chunk_bytes) {
  // Blocks of this size share a processor: one reads while another writes.
  constexpr int64_t kComfortable = 64 << 10;
  // A smaller part of a row is not worth a block of its own.
  constexpr int64_t kMinBytes = 8 << 10;
  const int max_cluster = gpu.arch >= 90 ? kMaxCluster : 1;
  int cluster = 1;
  while (cluster < max_cluster) {
    const int64_t bytes = ceil_div(chunks, cluster) * chunk_bytes;
    const bool idle = tokens * cluster < gpu.processors && bytes >= 2 * kMinBytes;
    if (bytes <= kComfortable && !idle) break;
    cluster *= 2;
  }
  const int64_t share = ceil_div(chunks, cluster);
  const int64_t bytes = kRowScratch + share * chunk_bytes;
  // Few long rows on a GPU without clusters are better split over its processors.
  const bool busy = gpu.arch >= 90 || tokens >= gpu.processors || bytes <= kComfortable;
  return {busy && bytes <= gpu.shared_bytes, cluster, threads_for(share, 4), share, bytes};
}

// One pass over a row in `splits` parts: the blocks of a cluster, or else `partial` sums that a
// second kernel combines.
struct SweepPlan {
  int splits, threads;
  bool partial;
  int64_t share;  // chunks of a part
};

inline SweepPlan sweep_plan(const Gpu& gpu, int64_t tokens, int64_t chunks) {
  constexpr int64_t kMinChunks = 4 * kMaxThreads;  // chunks of a part
  const int64_t wanted = 4 * gpu.processors;
  int splits = 1;
  if (tokens < 2 * gpu.processors)
    while (splits < 64 && splits * tokens < wanted && splits * 2 * kMinChunks <= chunks)
      splits *= 2;
  const bool partial = splits > (gpu.arch >= 90 ? kMaxCluster : 1);
  const int64_t share = ceil_div(chunks, splits);
  return {splits, threads_for(share, 4), partial, share};
}

// The gradient from the lse: parts of a row are independent of each other.
struct GradientPlan {
  int threads;
  int64_t parts;
};

inline GradientPlan gradient_plan(int64_t chunks) {
  const int threads = threads_for(chunks < 1024 ? chunks : 1024, 4);
  return {threads, chunks > 0 ? ceil_div(chunks, threads * 4) : 1};
}

}  // namespace cuda
}  // namespace llama_fast
