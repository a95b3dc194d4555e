#include "cpu/bin_packing.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace llama_fast {
namespace {

std::string at(int64_t i) { return "lengths[" + std::to_string(i) + "]"; }

Packing best_fit_decreasing(const int64_t* lengths, int64_t n, int64_t capacity) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  Packing packing;
  packing.bin_of.resize(n);
  std::set<std::pair<int64_t, int64_t>> open;  // (room left, bin)
  for (int64_t i : order) {
    const auto fullest = open.lower_bound({lengths[i], 0});
    const bool fits = fullest != open.end();
    const auto [room, bin] = fits ? *fullest : std::make_pair(capacity, packing.n_bins++);
    if (fits) open.erase(fullest);
    open.emplace(room - lengths[i], bin);
    packing.bin_of[i] = bin;
  }
  return packing;
}

Packing next_fit(const int64_t* lengths, int64_t n, int64_t capacity) {
  Packing packing;
  packing.bin_of.resize(n);
  int64_t room = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (packing.n_bins == 0 || lengths[i] > room) {
      ++packing.n_bins;
      room = capacity;
    }
    room -= lengths[i];
    packing.bin_of[i] = packing.n_bins - 1;
  }
  return packing;
}

}  // namespace

Packing pack_into_bins(const int64_t* lengths, int64_t n, int64_t capacity) {
  if (capacity < 1) {
    throw std::invalid_argument("capacity: expected a positive number, got " +
                                std::to_string(capacity));
  }
  for (int64_t i = 0; i < n; ++i) {
    if (lengths[i] < 0 || lengths[i] > capacity) {
      throw std::invalid_argument(at(i) + ": expected a length from 0 to the capacity of " +
                                  std::to_string(capacity) + ", got " + std::to_string(lengths[i]));
    }
  }
  Packing best = best_fit_decreasing(lengths, n, capacity);
  // Rarely, an order happens to be packed perfectly as it stands: 4 3 3 | 4 3 3 into tens.
  Packing in_order = next_fit(lengths, n, capacity);
  return in_order.n_bins < best.n_bins ? in_order : best;
}

std::vector<int32_t> cumulative_lengths(const int64_t* lengths, int64_t n) {
  std::vector<int32_t> offsets(n + 1, 0);
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  for (int64_t i = 0; i < n; ++i) {
    if (lengths[i] < 0) {
      throw std::invalid_argument(at(i) + ": expected a length of at least 0, got " +
                                  std::to_string(lengths[i]));
    }
    if (lengths[i] > kMax - offsets[i]) {
      throw std::invalid_argument("lengths: expected a sum of at most " + std::to_string(kMax) +
                                  " (int32), passed it at " + at(i));
    }
    offsets[i + 1] = offsets[i] + static_cast<int32_t>(lengths[i]);
  }
  return offsets;
}

}  // namespace llama_fast
