// Kernels that use what the emulation has to get right, and some that are wrong. nvcc compiles them
// too (csrc/cuda/report.py), so that everything in device.h is seen by the assembler.
#include <stdexcept>

#include "cuda/device.h"

namespace llama_fast {
namespace cuda {
namespace {

template <class T>
LF_KERNEL(32)
product(const T* a, const T* b, float* out, bool transposed) {
  auto* rows = reinterpret_cast<T*>(shared_memory());
  auto* columns = rows + 256;
  copy_async(rows + lane() * 8, a + lane() * 8);
  if (lane() < 16) copy_async(columns + lane() * 8, b + lane() * 8);
  copy_async_commit();
  copy_async_wait<0>();
  sync_warp();
  uint32_t left[4], right[2];
  load_matrices(left, rows + lane() % 16 * 16 + lane() / 16 * 8);
  if (transposed) {  // b is 16x8
    load_matrices_transposed(right, columns + lane() % 16 * 8);
  } else {  // its transpose, 8x16
    load_matrices(right, columns + lane() % 8 * 16 + lane() / 8 % 2 * 8);
  }
  float d[4] = {1, 1, 1, 1};
  multiply_add<T>(d, left, right);
  for (float& v : d) v = divide_fast(multiply(exp2_fast(1.0f), v), 2.0f);
  for (int i = 0; i < 4; ++i) out[(lane() / 4 + i / 2 * 8) * 8 + lane() % 4 * 2 + i % 2] = d[i];
}

// Each block reads what the next of its cluster has written.
LF_KERNEL(64) neighbour(int* out, bool barrier) {
  auto* mine = reinterpret_cast<int*>(shared_memory());
  if (thread() == 0) *mine = static_cast<int>(block_x());
  if (barrier) sync_cluster();
  if (thread() == 63) out[block_x()] = *distributed(mine, (cluster_rank() + 1) % cluster_size());
  sync_cluster();
}

LF_KERNEL(128) reversed(const float* in, float* out, bool barrier) {
  auto* all = reinterpret_cast<float*>(shared_memory());
  all[thread()] = in[thread()];
  if (barrier) sync_block();
  out[thread()] = all[threads() - 1 - thread()];
}

LF_KERNEL(32) unfinished(const float* in, float* out, bool wait) {
  copy_async(shared_memory() + lane() * 16, in + lane() * 4);
  copy_async_commit();
  if (wait) copy_async_wait<0>();
  store_chunk_once(out + 32 + lane() * 4, load_chunk_once(in + lane() * 4));
  out[lane()] = reinterpret_cast<float*>(shared_memory())[lane() * 4];
}

LF_KERNEL(64) divergent() {
  if (thread() == 5) {
    warp_sum(1.0f);
  } else {
    sync_block();
  }
}
LF_KERNEL(64) mixed() {
  if (thread() % 2) {
    ballot(true);
  } else {
    shuffle(1, 0);
  }
}
LF_KERNEL(32) overrun() { shared_memory()[64 + thread()] = 0; }
LF_KERNEL(32) misaligned() { store_chunk(shared_memory() + 4, Chunk{}); }

LF_KERNEL(32) convert(const float* in, bf16* narrow_bf16, f16* narrow_f16, float* wide) {
  narrow_bf16[thread()] = narrow<bf16>(in[thread()]);
  narrow_f16[thread()] = narrow<f16>(in[thread()]);
  wide[thread()] = widen(narrow_f16[thread()]);
}

Launch one(const char* name, int threads, int64_t shared) {
  return {name, {1, 1, 1}, threads, 1, shared};
}

}  // namespace
}  // namespace cuda
}  // namespace llama_fast

using namespace llama_fast;
using namespace llama_fast::cuda;

extern "C" {

void multiply_bf16(const bf16* a, const bf16* b, float* out, bool transposed) {
  launch({}, one("product", 32, 1024), product<bf16>, a, b, out, transposed);
}
void multiply_f16(const f16* a, const f16* b, float* out, bool transposed) {
  launch({}, one("product", 32, 1024), product<f16>, a, b, out, transposed);
}
void run_neighbour(int* out, bool barrier) {
  launch({}, Launch{"neighbour", {8, 1, 1}, 64, 4, 64}, neighbour, out, barrier);
}
void run_reversed(const float* in, float* out, bool barrier) {
  launch({}, one("reversed", 128, 512), reversed, in, out, barrier);
}
void run_unfinished(const float* in, float* out, bool wait) {
  launch({}, one("unfinished", 32, 512), unfinished, in, out, wait);
}
void run_convert(const float* in, bf16* narrow_bf16, f16* narrow_f16, float* wide) {
  launch({}, one("convert", 32, 0), convert, in, narrow_bf16, narrow_f16, wide);
}

// The error of a kernel that is wrong.
const char* failure(const char* name) {
  static std::string message;
  const std::string which = name;
  message = "none";
  try {
    if (which == "divergent") launch({}, one(name, 64, 0), divergent);
    if (which == "mixed") launch({}, one(name, 64, 0), mixed);
    if (which == "overrun") launch({}, one(name, 32, 64), overrun);
    if (which == "misaligned") launch({}, one(name, 32, 64), misaligned);
    if (which == "threads") launch({}, one(name, 48, 0), mixed);
    if (which == "shared") launch({}, one(name, 32, 1 << 20), mixed);
    if (which == "cluster") launch({}, Launch{name, {6, 1, 1}, 32, 4, 0}, mixed);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  return message.c_str();
}
}
