#include "cpu/scratch.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "constants.h"
#include "glue/memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llama_fast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMaxKept = size_t{64} << 20;  // more is freed at the next smaller request

// Memory of at least `bytes`, or null; its size.
void* try_allocate(size_t bytes, size_t* size) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  if (bytes > SIZE_MAX / 2) return nullptr;  // also catches sizes below zero
  *size = (bytes + alignment - 1) / alignment * alignment;
  void* const data = std::aligned_alloc(alignment, *size);
#ifdef __linux__
  if (data != nullptr && alignment == kHugePage) madvise(data, *size, MADV_HUGEPAGE);
#endif
  return data;
}

void* allocate(size_t bytes, size_t* size) {
  void* data = try_allocate(bytes, size);
  if (data == nullptr && free_idle_memory() > 0) data = try_allocate(bytes, size);
  if (data == nullptr) throw_out_of_memory(bytes);
  return data;
}

class ThreadScratch;

// The scratch of all threads, so that empty_cache() finds what is not in use.
struct Registry {
  ForkSafeMutex mutex;
  ThreadScratch* first = nullptr;
};
Registry& registry();

void lock_registry() { registry().mutex.lock(); }
void unlock_registry() { registry().mutex.unlock(); }

// Never destroyed: threads may end after static objects are destroyed.
Registry& registry() {
  static Registry& instance = *new Registry{{lock_registry, unlock_registry}};
  return instance;
}

// Created before there is a second thread: fork() must not happen while another thread creates it.
[[maybe_unused]] const Registry& made_early = registry();

// The scratch of one thread. Its owner, the thread or empty_cache(), is the one that changed its
// state from idle.
class ThreadScratch {
 public:
  ThreadScratch() {
    Registry& all = registry();
    const std::lock_guard<ForkSafeMutex> lock(all.mutex);
    next_ = all.first;
    if (next_ != nullptr) next_->previous_ = this;
    all.first = this;
  }

  ~ThreadScratch() {
    Registry& all = registry();
    const std::lock_guard<ForkSafeMutex> lock(all.mutex);
    (previous_ == nullptr ? all.first : previous_->next_) = next_;
    if (next_ != nullptr) next_->previous_ = previous_;
    std::free(data_);
  }

  void enter() { ++depth_; }

  void leave() {
    if (--depth_ == 0 && owned_) {
      owned_ = false;
      idle_.store(true, std::memory_order_release);
    }
  }

  void* at_least(size_t bytes) {
    if (!owned_) {  // owned until the outermost kernel ends; forever outside a kernel
      while (!idle_.exchange(false, std::memory_order_acquire)) {
        // empty_cache() is freeing it: wait for that.
        const std::lock_guard<ForkSafeMutex> lock(registry().mutex);
      }
      owned_ = true;
    }
    const bool shrinks = size_ > kMaxKept && bytes <= kMaxKept;
    if (bytes <= size_ && !shrinks) return data_;
    std::free(std::exchange(data_, nullptr));
    size_ = 0;
    size_t size = 0;
    data_ = allocate(bytes, &size);
    size_ = size;
    return data_;
  }

  // Under the registry's lock.
  size_t free_if_idle() {
    if (!idle_.exchange(false, std::memory_order_acquire)) return 0;
    std::free(std::exchange(data_, nullptr));
    const size_t bytes = std::exchange(size_, 0);
    idle_.store(true, std::memory_order_release);
    return bytes;
  }

  ThreadScratch* next() const { return next_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  int depth_ = 0;       // nesting of kernels in this thread
  bool owned_ = false;  // by this thread, since it asked for scratch
  std::atomic<bool> idle_{true};
  ThreadScratch *previous_ = nullptr, *next_ = nullptr;
};

ThreadScratch& this_thread() {
  static thread_local ThreadScratch scratch;
  return scratch;
}

}  // namespace

void* thread_scratch(size_t bytes) { return this_thread().at_least(bytes); }

size_t free_idle_scratch() {
  Registry& all = registry();
  const std::lock_guard<ForkSafeMutex> lock(all.mutex);
  size_t bytes = 0;
  for (ThreadScratch* b = all.first; b != nullptr; b = b->next()) bytes += b->free_if_idle();
  return bytes;
}

ScratchInUse::ScratchInUse() { this_thread().enter(); }
ScratchInUse::~ScratchInUse() { this_thread().leave(); }

size_t bytes_of(int64_t n, size_t each) {
  size_t bytes = 0;
  if (n < 0 || __builtin_mul_overflow(static_cast<size_t>(n), each, &bytes) || bytes > SIZE_MAX / 4)
    throw std::runtime_error("llama_fast: " LF_NOT_ENOUGH_MEMORY
                             ": no memory is large enough for " +
                             std::to_string(n) + " numbers");
  return bytes;
}

Workspace::Workspace(size_t bytes) : data_(nullptr), owned_(bytes > kMaxKept) {
  size_t size = 0;
  data_ = owned_ ? allocate(bytes, &size) : thread_scratch(bytes);
}

Workspace::~Workspace() {
  if (owned_) std::free(data_);
}

}  // namespace llama_fast
