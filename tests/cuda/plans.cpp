// The rules for grids, as functions that ctypes can call.
#include "cuda/cross_entropy_plan.h"
#include "cuda/rms_norm_plan.h"

using namespace llama_fast::cuda;

extern "C" {

struct Resident {
  int64_t fits, cluster, threads, share, shared_bytes;
};
Resident resident(int arch, int processors, int64_t shared, int64_t tokens, int64_t chunks,
                  int64_t chunk_bytes) {
  const ResidentPlan p = resident_plan({arch, processors, shared}, tokens, chunks, chunk_bytes);
  return {p.fits, p.cluster, p.threads, p.share, p.shared_bytes};
}

struct Sweep {
  int64_t splits, threads, partial, share;
};
Sweep sweep(int arch, int processors, int64_t tokens, int64_t chunks) {
  const SweepPlan p = sweep_plan({arch, processors, 0}, tokens, chunks);
  return {p.splits, p.threads, p.partial, p.share};
}

struct Gradient {
  int64_t threads, parts;
};
Gradient gradient(int64_t chunks) {
  const GradientPlan p = gradient_plan(chunks);
  return {p.threads, p.parts};
}

struct RmsNorm {
  int64_t group, rows;
};
RmsNorm rms_norm(int64_t chunks, int kept) {
  const RmsNormPlan p = rms_norm_plan(chunks, kept);
  return {p.group, p.rows};
}
}
