// Parallel loops on torch's own thread pool (implemented in csrc/ops.cpp).
#pragma once

#include <atomic>
#include <cstdint>

namespace llama_fast {

// Calls body(begin, end, context) on pieces of [0, n), each at least `grain` long.
void run_parallel(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// Number of threads that torch uses.
int num_threads();

}  // namespace llama_fast

#ifdef LLAMA_FAST_ISA
namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// f(begin, end) over fixed pieces of [0, n).
template <class F>
void parallel_ranges(int64_t n, int64_t grain, F&& f) {
  auto body = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<F*>(context))(begin, end);
  };
  if (n <= grain || num_threads() == 1) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
  run_parallel(n, grain, body, &f);
}

// f(item) for every item of [0, n). Idle threads take items one at a time, in increasing order.
// Items must write to different memory, so that results do not depend on which thread runs an item.
template <class F>
void parallel_items(int64_t n, bool worth_threads, F&& f) {
  const int64_t threads = worth_threads ? (n < num_threads() ? n : num_threads()) : 1;
  if (threads <= 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel_ranges(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = next++; i < n; i = next++) f(i);
  });
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
#endif
