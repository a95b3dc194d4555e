#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llama_fast {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kKeep = size_t{64} << 20;  // more than this is given back before the next request

// Sets *data to memory of at least `bytes`; returns its size.
size_t allocate(size_t bytes, void** data) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  *data = std::aligned_alloc(alignment, rounded);
  if (*data == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kHugePage) madvise(*data, rounded, MADV_HUGEPAGE);
#endif
  return rounded;
}

struct Block {
  void* data = nullptr;
  size_t size = 0;

  ~Block() { std::free(data); }

  void* at_least(size_t bytes) {
    const bool too_big_to_keep = size > kKeep && bytes <= kKeep;
    if (bytes <= size && !too_big_to_keep) return data;
    std::free(data);
    size = 0;
    size = allocate(bytes, &data);
    return data;
  }
};

}  // namespace

void* thread_scratch(size_t bytes) {
  static thread_local Block block;
  return block.at_least(bytes);
}

Workspace::Workspace(size_t bytes) : data_(nullptr), owned_(bytes > kKeep) {
  if (owned_)
    allocate(bytes, &data_);
  else
    data_ = thread_scratch(bytes);
}

Workspace::~Workspace() {
  if (owned_) std::free(data_);
}

}  // namespace llama_fast
