#include "glue/output_cache.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llama_fast {

#ifdef __linux__
namespace {

constexpr size_t kWorthIt = size_t{4} << 20;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kDefaultLimit = size_t{512} << 20;

size_t limit() {
  static const size_t bytes = [] {
    const char* mebibytes = std::getenv("LLAMA_FAST_CACHE_MB");
    return mebibytes == nullptr ? kDefaultLimit
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

// The blocks that no tensor uses, the one returned last at the end.
class Cache {
 public:
  Block take(size_t bytes) {
    // A lock that is held may stay so for ever: in a process forked while another thread had it.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    auto best = blocks_.end();
    for (auto b = blocks_.begin(); b != blocks_.end(); ++b)
      if (b->bytes >= bytes && b->bytes <= bytes + bytes / 4 &&
          (best == blocks_.end() || b->bytes <= best->bytes))
        best = b;
    if (best == blocks_.end()) return {};
    const Block block = *best;
    blocks_.erase(best);
    held_ -= block.bytes;
    return block;
  }

  // The blocks to unmap, this one among them if it is not to be kept.
  std::vector<Block> give(Block block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > limit()) return {block};
    std::vector<Block> evicted;
    while (held_ + block.bytes > limit()) {
      evicted.push_back(blocks_.front());
      held_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
    blocks_.push_back(block);
    held_ += block.bytes;
    return evicted;
  }

  std::vector<Block> clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = 0;
    return std::exchange(blocks_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t held_ = 0;
};

// Never destroyed: tensors may die after everything else.
Cache& cache() {
  static Cache& instance = *new Cache;
  return instance;
}

}  // namespace

Block take_output(size_t bytes) {
  if (bytes < kWorthIt || limit() == 0) return {};
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  const Block block = cache().take(rounded);
  return block.data != nullptr ? block : map(rounded);
}

void give_back(Block block) {
  // The system may take these pages while nobody uses them, if it runs short of memory.
#ifdef MADV_FREE
  madvise(block.data, block.bytes, MADV_FREE);
#endif
  for (const Block& b : cache().give(block)) munmap(b.data, b.bytes);
}

int64_t empty_cache() {
  size_t bytes = 0;
  for (const Block& b : cache().clear()) {
    bytes += b.bytes;
    munmap(b.data, b.bytes);
  }
  return static_cast<int64_t>(bytes);
}
#else
Block take_output(size_t) { return {}; }
void give_back(Block) {}
int64_t empty_cache() { return 0; }
#endif

}  // namespace llama_fast
