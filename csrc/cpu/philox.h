// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a random
// word as a function of a seed and a position, so that dropout needs no stored mask.
#pragma once

#include <cstdint>

#include "constants.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// The four words for counter (c0, c1, c2, 0) under `seed`.
inline void philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t out[4]) {
  uint32_t x0 = c0, x1 = c1, x2 = c2, x3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxMultipliers[0]} * x0,
                   p1 = uint64_t{kPhiloxMultipliers[1]} * x2;
    const uint32_t y0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ k0;
    const uint32_t y2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ k1;
    x1 = static_cast<uint32_t>(p1);
    x3 = static_cast<uint32_t>(p0);
    x0 = y0;
    x2 = y2;
    k0 += kPhiloxKeySteps[0];
    k1 += kPhiloxKeySteps[1];
  }
  out[0] = x0, out[1] = x1, out[2] = x2, out[3] = x3;
}

// factor[j] for keys j0 .. j0 + n (j0 a multiple of 4): 1 / (1 - p) where kept, else 0.
template <class T>
void dropout_factors(uint64_t seed, double p, int64_t head, int64_t query, int64_t j0, int64_t n,
                     T* factor) {
  const uint64_t threshold = static_cast<uint64_t>(p * 4294967296.0);
  const T kept = p < 1.0 ? static_cast<T>(1.0 / (1.0 - p)) : T(0);
  for (int64_t j = 0; j < n; j += 4) {
    uint32_t words[4];
    philox(seed, static_cast<uint32_t>((j0 + j) / 4), static_cast<uint32_t>(query),
           static_cast<uint32_t>(head), words);
    for (int64_t lane = 0; lane < 4 && j + lane < n; ++lane)
      factor[j + lane] = words[lane] >= threshold ? kept : T(0);
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
