// Huge pages for large fresh outputs: at 4 KB a page, the page faults of a new tensor cost more
// than the arithmetic that fills it.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace llama_fast {

// To be called before the memory is touched. Only a hint: nothing depends on its success.
inline void ask_for_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr size_t kWorthIt = size_t{4} << 20, kHugePage = size_t{2} << 20;
  if (bytes < kWorthIt) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace llama_fast
