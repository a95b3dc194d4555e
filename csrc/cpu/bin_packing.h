// Which sequences share a row of fixed length. Integer work in one thread: compiled once, not for
// each instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace llama_fast {

struct Packing {
  std::vector<int64_t> bin_of;  // one entry a sequence, bins numbered from 0
  int64_t n_bins = 0;
};

// Best-fit decreasing: longest sequence first, into the fullest bin that still has room. Uses at
// most 3/2 of the smallest possible number of bins (Simchi-Levi, 1994), 11/9 of it when there are
// many (Johnson, 1973), and never more than packing the sequences in the order given (next fit).
// O(n log n). Equal lengths and equal bins are taken in order of index, so the result depends on
// the input alone.
//
// Throws std::invalid_argument when capacity < 1 or a length is not in [0, capacity].
Packing pack_into_bins(const int64_t* lengths, int64_t n, int64_t capacity);

// Offsets 0, l0, l0+l1, ... (n + 1 of them) into a packed row.
//
// Throws std::invalid_argument when a length is negative or the sum does not fit into an int32.
std::vector<int32_t> cumulative_lengths(const int64_t* lengths, int64_t n);

}  // namespace llama_fast
