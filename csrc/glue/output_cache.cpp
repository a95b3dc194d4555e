#include "glue/output_cache.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "constants.h"
#include "glue/memory.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llama_fast {

#ifdef __linux__
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t limit() {
  static const size_t bytes = [] {
    const char* mebibytes = std::getenv("LLAMA_FAST_CACHE_MB");
    return mebibytes == nullptr ? kDefaultOutputCache
                                : static_cast<size_t>(std::strtoull(mebibytes, nullptr, 10)) << 20;
  }();
  return bytes;
}

// Memory that starts on a huge page, straight from the system.
OutputMemory map(size_t bytes) {
  void* wide =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (wide == MAP_FAILED) return {};
  char* const low = static_cast<char*>(wide);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(low) % kHugePage) % kHugePage;
  if (before > 0) munmap(low, before);
  munmap(low + before + bytes, kHugePage - before);
  madvise(low + before, bytes, MADV_HUGEPAGE);
  return {low + before, bytes};
}

// Memory that no tensor uses, the one returned last at the end. Nothing here allocates or throws,
// because deleters of tensors call it.
class IdleOutputs {
 public:
  IdleOutputs(ForkSafeMutex::Handler lock_it, ForkSafeMutex::Handler unlock_it)
      : mutex_(lock_it, unlock_it) {}

  ForkSafeMutex& mutex() { return mutex_; }

  OutputMemory take(size_t bytes) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    int best = -1;
    for (int b = 0; b < count_; ++b)
      if (idle_[b].bytes >= bytes && idle_[b].bytes <= bytes + bytes / 4 &&
          (best < 0 || idle_[b].bytes <= idle_[best].bytes))
        best = b;
    return best < 0 ? OutputMemory{} : remove(best);
  }

  // Keeps `memory` and returns {}, or returns other memory that has to be unmapped before this is
  // called again.
  OutputMemory give(const OutputMemory& memory) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (count_ > 0 && (count_ == kMaxIdle || held_ + memory.bytes > limit())) return remove(0);
    idle_[count_++] = memory;
    held_ += memory.bytes;
    return {};
  }

  // Any idle memory, or {} when there is none left.
  OutputMemory take_any() {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    return count_ > 0 ? remove(count_ - 1) : OutputMemory{};
  }

 private:
  static constexpr int kMaxIdle = 1024;

  OutputMemory remove(int at) {
    const OutputMemory memory = idle_[at];
    std::copy(idle_ + at + 1, idle_ + count_, idle_ + at);
    --count_;
    held_ -= memory.bytes;
    return memory;
  }

  ForkSafeMutex mutex_;
  OutputMemory idle_[kMaxIdle];
  int count_ = 0;
  size_t held_ = 0;
};

IdleOutputs& idle_outputs();
void lock_cache() { idle_outputs().mutex().lock(); }
void unlock_cache() { idle_outputs().mutex().unlock(); }

// Never destroyed: tensors may be freed after static objects are destroyed.
IdleOutputs& idle_outputs() {
  static IdleOutputs& instance = *new IdleOutputs(lock_cache, unlock_cache);
  return instance;
}

// Created before there is a second thread: fork() must not happen while another thread creates it.
[[maybe_unused]] const IdleOutputs& made_early = idle_outputs();

}  // namespace

OutputMemory take_output_memory(size_t bytes) {
  if (bytes < kMinCachedOutput || bytes > SIZE_MAX / 2 || limit() == 0) return {};
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const OutputMemory memory = idle_outputs().take(rounded);
  return memory.data != nullptr ? memory : map(rounded);
}

void return_output_memory(OutputMemory memory) {
  if (memory.bytes > limit()) {
    munmap(memory.data, memory.bytes);
    return;
  }
  // The system may take these pages while nobody uses them, if it runs short of memory.
#ifdef MADV_FREE
  madvise(memory.data, memory.bytes, MADV_FREE);
#endif
  for (OutputMemory b = idle_outputs().give(memory); b.data != nullptr;
       b = idle_outputs().give(memory))
    munmap(b.data, b.bytes);
}

int64_t empty_output_cache() {
  size_t bytes = 0;
  for (OutputMemory b = idle_outputs().take_any(); b.data != nullptr;
       b = idle_outputs().take_any()) {
    bytes += b.bytes;
    munmap(b.data, b.bytes);
  }
  return static_cast<int64_t>(bytes);
}
#else
OutputMemory take_output_memory(size_t) { return {}; }
void return_output_memory(OutputMemory) {}
int64_t empty_output_cache() { return 0; }
#endif

}  // namespace llama_fast
