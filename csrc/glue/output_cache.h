// Memory of large outputs, kept when a tensor is freed and reused for the next one: the page faults
// of fresh memory cost more than the arithmetic that fills it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama_fast {

// Memory for one tensor, on huge pages if the system has them.
struct OutputMemory {
  void* data = nullptr;
  size_t bytes = 0;
};

// At least `bytes` of uninitialised memory, or null if torch's allocator should be used: for small
// outputs, and without a cache.
OutputMemory take_output_memory(size_t bytes);

// Takes back what take_output_memory() returned, when its tensor is freed. Throws nothing.
void return_output_memory(OutputMemory memory);

// Frees all memory that no tensor uses; returns the number of bytes.
int64_t empty_output_cache();

}  // namespace llama_fast
