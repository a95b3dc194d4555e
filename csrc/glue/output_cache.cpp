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
Block map(size_t bytes) {
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

// The blocks that no tensor uses, the one returned last at the end. Nothing here allocates or
// throws: blocks are returned by the deleters of tensors.
class Cache {
 public:
  Cache(ForkSafeMutex::Handler lock_it, ForkSafeMutex::Handler unlock_it)
      : mutex_(lock_it, unlock_it) {}

  ForkSafeMutex& mutex() { return mutex_; }

  Block take(size_t bytes) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    int best = -1;
    for (int b = 0; b < count_; ++b)
      if (blocks_[b].bytes >= bytes && blocks_[b].bytes <= bytes + bytes / 4 &&
          (best < 0 || blocks_[b].bytes <= blocks_[best].bytes))
        best = b;
    return best < 0 ? Block{} : remove(best);
  }

  // Keeps a block. Returns one to unmap instead, after which the call is to be repeated, or {}.
  Block give(const Block& block) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (count_ > 0 && (count_ == kMost || held_ + block.bytes > limit())) return remove(0);
    blocks_[count_++] = block;
    held_ += block.bytes;
    return {};
  }

  // Any block, or {} when there is none left.
  Block give_up() {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    return count_ > 0 ? remove(count_ - 1) : Block{};
  }

 private:
  static constexpr int kMost = 1024;

  Block remove(int at) {
    const Block block = blocks_[at];
    std::copy(blocks_ + at + 1, blocks_ + count_, blocks_ + at);
    --count_;
    held_ -= block.bytes;
    return block;
  }

  ForkSafeMutex mutex_;
  Block blocks_[kMost];
  int count_ = 0;
  size_t held_ = 0;
};

Cache& cache();
void lock_cache() { cache().mutex().lock(); }
void unlock_cache() { cache().mutex().unlock(); }

// Never destroyed: tensors may die after everything else.
Cache& cache() {
  static Cache& instance = *new Cache(lock_cache, unlock_cache);
  return instance;
}

// Before there is a second thread: a process must not be forked while another thread makes it.
[[maybe_unused]] const Cache& made_early = cache();

}  // namespace

Block take_output(size_t bytes) {
  if (bytes < kMinCachedOutput || bytes > SIZE_MAX / 2 || limit() == 0) return {};
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const Block block = cache().take(rounded);
  return block.data != nullptr ? block : map(rounded);
}

void give_back(Block block) {
  if (block.bytes > limit()) {
    munmap(block.data, block.bytes);
    return;
  }
  // The system may take these pages while nobody uses them, if it runs short of memory.
#ifdef MADV_FREE
  madvise(block.data, block.bytes, MADV_FREE);
#endif
  for (Block b = cache().give(block); b.data != nullptr; b = cache().give(block))
    munmap(b.data, b.bytes);
}

int64_t empty_output_cache() {
  size_t bytes = 0;
  for (Block b = cache().give_up(); b.data != nullptr; b = cache().give_up()) {
    bytes += b.bytes;
    munmap(b.data, b.bytes);
  }
  return static_cast<int64_t>(bytes);
}
#else
Block take_output(size_t) { return {}; }
void give_back(Block) {}
int64_t empty_output_cache() { return 0; }
#endif

}  // namespace llama_fast
