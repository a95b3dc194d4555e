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
constexpr size_t kKeep = size_t{64} << 20;  // more than this is given back before the next request

// Memory of at least `bytes`, or null; its size.
void* try_allocate(size_t bytes, size_t* size) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  if (bytes > SIZE_MAX / 2) return nullptr;  // also what a size below zero became
  *size = (bytes + alignment - 1) / alignment * alignment;
  void* const data = std::aligned_alloc(alignment, *size);
#ifdef __linux__
  if (data != nullptr && alignment == kHugePage) madvise(data, *size, MADV_HUGEPAGE);
#endif
  return data;
}

void* allocate(size_t bytes, size_t* size) {
  void* data = try_allocate(bytes, size);
  if (data == nullptr && give_up_idle_memory() > 0) data = try_allocate(bytes, size);
  if (data == nullptr) throw_out_of_memory(bytes);
  return data;
}

class Block;

// The blocks of all threads, so that empty_cache() finds those that are not in use.
struct Registry {
  ForkSafeMutex mutex;
  Block* first = nullptr;
};
Registry& registry();

void lock_registry() { registry().mutex.lock(); }
void unlock_registry() { registry().mutex.unlock(); }

// Never destroyed: threads may end after everything else.
Registry& registry() {
  static Registry& instance = *new Registry{{lock_registry, unlock_registry}};
  return instance;
}

// Before there is a second thread: a process must not be forked while another thread makes it.
[[maybe_unused]] const Registry& made_early = registry();

// The scratch of one thread. Whoever owns it, the thread or empty_cache(), has changed its state
// from idle.
class Block {
 public:
  Block() {
    Registry& all = registry();
    const std::lock_guard<ForkSafeMutex> lock(all.mutex);
    next_ = all.first;
    if (next_ != nullptr) next_->before_ = this;
    all.first = this;
  }

  ~Block() {
    Registry& all = registry();
    const std::lock_guard<ForkSafeMutex> lock(all.mutex);
    (before_ == nullptr ? all.first : before_->next_) = next_;
    if (next_ != nullptr) next_->before_ = before_;
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
    if (!owned_) {  // until the outermost kernel ends; for good where there is none
      while (!idle_.exchange(false, std::memory_order_acquire)) {
        // empty_cache() is freeing it
        const std::lock_guard<ForkSafeMutex> lock(registry().mutex);
      }
      owned_ = true;
    }
    const bool too_big_to_keep = size_ > kKeep && bytes <= kKeep;
    if (bytes <= size_ && !too_big_to_keep) return data_;
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

  Block* next() const { return next_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  int depth_ = 0;       // of kernels, in this thread
  bool owned_ = false;  // by this thread, which has asked for scratch in them
  std::atomic<bool> idle_{true};
  Block *before_ = nullptr, *next_ = nullptr;
};

Block& own() {
  static thread_local Block block;
  return block;
}

}  // namespace

void* thread_scratch(size_t bytes) { return own().at_least(bytes); }

size_t free_idle_scratch() {
  Registry& all = registry();
  const std::lock_guard<ForkSafeMutex> lock(all.mutex);
  size_t bytes = 0;
  for (Block* b = all.first; b != nullptr; b = b->next()) bytes += b->free_if_idle();
  return bytes;
}

ScratchInUse::ScratchInUse() { own().enter(); }
ScratchInUse::~ScratchInUse() { own().leave(); }

size_t bytes_of(int64_t n, size_t each) {
  size_t bytes = 0;
  if (n < 0 || __builtin_mul_overflow(static_cast<size_t>(n), each, &bytes) || bytes > SIZE_MAX / 4)
    throw std::runtime_error("llama_fast: " LF_NOT_ENOUGH_MEMORY
                             ": no memory is large enough for " +
                             std::to_string(n) + " numbers");
  return bytes;
}

Workspace::Workspace(size_t bytes) : data_(nullptr), owned_(bytes > kKeep) {
  size_t size = 0;
  data_ = owned_ ? allocate(bytes, &size) : thread_scratch(bytes);
}

Workspace::~Workspace() {
  if (owned_) std::free(data_);
}

}  // namespace llama_fast
