#include "cuda/emulation.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>

namespace llama_fast {
namespace cuda {
namespace emulation {

Thread* current = nullptr;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kGuardBytes = 4 << 10;  // after shared memory, to detect writes past its end
constexpr unsigned char kGuard = 0xa5;

struct Fiber : Thread {
  jmp_buf here;
  char* stack = nullptr;
  bool begun = false, done = false;
};

std::mutex running;
std::vector<std::unique_ptr<Fiber>> fibers;  // kept, because creating a stack is slow
const std::function<void()>* body = nullptr;
jmp_buf scheduler;
std::string failure;

char* new_stack() {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* p = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("llama_fast emulation: no memory for a stack");
  mprotect(p, page, PROT_NONE);  // a stack overflow crashes instead of giving a wrong result
  return static_cast<char*>(p) + page;
}

// setjmp and longjmp switch stacks without a system call; makecontext enters the stack of a fiber
// first.
void leave(Fiber* fiber) {
  if (_setjmp(fiber->here) == 0) _longjmp(scheduler, 1);
}

void run_fiber() {
  for (;;) {
    (*body)();
    auto* fiber = static_cast<Fiber*>(current);
    fiber->done = true;
    leave(fiber);
  }
}

void resume(Fiber* fiber) {
  current = fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber->begun) _longjmp(fiber->here, 1);
  fiber->begun = true;
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber->stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, run_fiber, 0);
  setcontext(&context);
}

void release(Barrier& barrier) {
  barrier.arrived = 0;
  ++barrier.generation;
}

// Block and cluster do not wait for a thread that has returned; a warp does, which is an error.
void retire(Barrier& barrier) {
  if (--barrier.expected > 0 && barrier.arrived == barrier.expected) release(barrier);
}

std::string describe(const Cluster& cluster, const std::string& what) {
  const int64_t* index = cluster.blocks.front().index;
  return "llama_fast emulation: kernel " + std::string(cluster.launch->name) + ", block (" +
         std::to_string(index[0]) + ", " + std::to_string(index[1]) + ", " +
         std::to_string(index[2]) + "): " + what;
}

std::string stuck(const std::vector<Fiber*>& order) {
  std::string message = "threads wait for others that never come:";
  int named = 0;
  for (const Fiber* f : order) {
    if (f->done || ++named > 4) continue;
    message += " thread " + std::to_string(f->index) + " of block " +
               std::to_string(f->block->rank) + " at " + f->waits_at->what + ",";
  }
  return message + " in all " + std::to_string(named);
}

// The order in which waiting threads are resumed.
std::vector<Fiber*> in_order(size_t count, uint64_t seed) {
  std::vector<Fiber*> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = fibers[i].get();
  const char* asked = std::getenv("LLAMA_FAST_EMULATION_ORDER");
  const std::string way = asked ? asked : "";
  if (way == "reverse") std::reverse(order.begin(), order.end());
  if (way == "shuffle") std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  return order;
}

class ClusterRun {
 public:
  ClusterRun(const Launch& launch, int64_t x, int64_t y, int64_t z) {
    const auto blocks = static_cast<size_t>(launch.cluster);
    const auto per_block = static_cast<size_t>(launch.threads);
    bytes_ = static_cast<size_t>(launch.shared_bytes);
    cluster_.launch = &launch;
    cluster_.blocks.resize(blocks);
    cluster_.barrier.expected = launch.cluster * launch.threads;
    count_ = blocks * per_block;
    while (fibers.size() < count_) {
      fibers.push_back(std::make_unique<Fiber>());
      fibers.back()->stack = new_stack();
    }
    for (size_t rank = 0; rank < blocks; ++rank) {
      Block& block = cluster_.blocks[rank];
      block.cluster = &cluster_;
      block.rank = static_cast<int>(rank);
      block.index[0] = x + block.rank;
      block.index[1] = y;
      block.index[2] = z;
      block.barrier.expected = launch.threads;
      block.shared =
          static_cast<char*>(std::aligned_alloc(1024, (bytes_ + kGuardBytes) / 1024 * 1024 + 1024));
      std::memset(block.shared, 0xff, bytes_);
      std::memset(block.shared + bytes_, kGuard, kGuardBytes);
      block.warps.resize(per_block / 32);
      for (Warp& warp : block.warps) warp.barrier.expected = 32;
      for (size_t i = 0; i < per_block; ++i) {
        Fiber& f = *fibers[rank * per_block + i];
        f.block = &block;
        f.warp = &block.warps[i / 32];
        f.index = static_cast<int>(i);
        f.exchanges = 0;
        f.waits_at = nullptr;
        f.copies.clear();
        f.done = false;
      }
    }
  }

  ~ClusterRun() {
    for (const Block& block : cluster_.blocks) std::free(block.shared);
  }
  ClusterRun(const ClusterRun&) = delete;

  void run(uint64_t seed) {
    const std::vector<Fiber*> order = in_order(count_, seed);
    size_t left = count_;
    while (left > 0) {
      bool moved = false;
      for (Fiber* f : order) {
        if (f->done || (f->waits_at && f->waits_at->generation == f->generation)) continue;
        f->waits_at = nullptr;
        resume(f);
        moved = true;
        if (!failure.empty()) throw_failure(failure);
        if (!f->done) continue;
        --left;
        retire(f->block->barrier);
        retire(cluster_.barrier);
      }
      if (!moved) throw_failure(stuck(order));
    }
    for (const Block& block : cluster_.blocks)
      for (size_t i = 0; i < kGuardBytes; ++i)
        if (static_cast<unsigned char>(block.shared[bytes_ + i]) != kGuard)
          throw_failure("wrote past the end of shared memory");
  }

 private:
  [[noreturn]] void throw_failure(const std::string& what) {
    const std::string message = describe(cluster_, what);
    failure.clear();
    for (const auto& f : fibers) f->begun = false;  // they stopped inside the kernel
    throw std::runtime_error(message);
  }

  Cluster cluster_;
  size_t count_ = 0, bytes_ = 0;
};

void check_launch(const Launch& l) {
  const std::string name = std::string("llama_fast emulation: kernel ") + l.name + ": ";
  if (l.threads < 32 || l.threads > 1024 || l.threads % 32 != 0)
    throw std::runtime_error(name + std::to_string(l.threads) + " threads");
  if (l.cluster < 1 || l.cluster > 16 || l.grid[0] % l.cluster != 0)
    throw std::runtime_error(name + "clusters of " + std::to_string(l.cluster));
  if (l.grid[0] < 1 || l.grid[0] > INT32_MAX || l.grid[1] < 1 || l.grid[1] > 65535 ||
      l.grid[2] < 1 || l.grid[2] > 65535)
    throw std::runtime_error(name + "a grid that a GPU does not take");
  if (l.shared_bytes < 0 || l.shared_bytes > gpu_of({}).shared_bytes)
    throw std::runtime_error(name + std::to_string(l.shared_bytes) + " bytes of shared memory");
}

}  // namespace

void wait_at(Barrier& barrier, const char* what) {
  Thread& me = *current;
  if (barrier.arrived == 0) barrier.what = what;
  if (std::strcmp(barrier.what, what) != 0) fail("threads of a warp are in different collectives");
  if (++barrier.arrived == barrier.expected) return release(barrier);
  me.waits_at = &barrier;
  me.generation = barrier.generation;
  leave(static_cast<Fiber*>(&me));
}

void fail(const char* what) {
  failure = "thread " + std::to_string(current->index) + ": " + what;
  leave(static_cast<Fiber*>(current));
  std::abort();  // never resumed
}

void run(const Launch& launch, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(running);
  check_launch(launch);
  body = &kernel;
  uint64_t seed = 0;
  for (int64_t z = 0; z < launch.grid[2]; ++z)
    for (int64_t y = 0; y < launch.grid[1]; ++y)
      for (int64_t x = 0; x < launch.grid[0]; x += launch.cluster)
        ClusterRun(launch, x, y, z).run(++seed);
}

}  // namespace emulation

// LLAMA_FAST_EMULATE_CUDA names the architecture; few processors, so that small problems are split.
Gpu gpu_of(const Queue&) {
  const char* asked = std::getenv("LLAMA_FAST_EMULATE_CUDA");
  const int number = asked ? std::atoi(asked) : 0;
  const int arch = number >= 80 ? number : 90;
  return {arch, 4, (arch >= 90 ? 227 : 163) << 10};
}

}  // namespace cuda
}  // namespace llama_fast
