// Memory of large outputs, kept when a tensor dies and handed to the next one: the page faults of
// a new tensor cost more than the arithmetic that fills it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama_fast {

// A block of memory for one tensor, on huge pages where the system offers them.
struct Block {
  void* data = nullptr;
  size_t bytes = 0;
};

// At least `bytes` of uninitialised memory, or {nullptr} where the usual allocator should serve:
// small outputs, and systems or settings without a cache.
Block take_output(size_t bytes);

// What take_output() gave, when its tensor is gone. Throws nothing.
void give_back(Block block);

// Returns all memory that no tensor uses to the system, and how many bytes that was.
int64_t empty_output_cache();

}  // namespace llama_fast
