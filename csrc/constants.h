// Numbers and texts that the Python code repeats. csrc/glue/facts.cpp reports them, and
// tests/ops/test_constants.py asserts that both sides agree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama_fast {

// `reduction`, an argument of the losses.
enum class Reduction : int { none = 0, mean = 1, sum = 2 };

// Bits of `grad_mask`, an argument of the backward operators: which gradients are wanted.
enum AttentionGrad : int64_t {
  kGradQ = 1,
  kGradK = 2,
  kGradV = 4,
  kGradBias = 8,
  kGradAlibiSlopes = 16,
  kGradSinks = 32,
};
enum LinearCrossEntropyGrad : int64_t {
  kGradLinearInput = 1,
  kGradLinearWeight = 2,
  kGradLinearBias = 4,
};
enum RmsNormGrad : int64_t { kGradX = 1, kGradWeight = 2 };
enum SwigluGrad : int64_t { kGradGate = 1, kGradUp = 2 };

// The attention kernel for few rows, which reads keys in pages: at most this many queries times
// heads of a group, and pages of a multiple of this many keys.
constexpr int64_t kFewRows = 8;
constexpr int64_t kPageUnit = 16;

// Philox4x32-10, which attention's dropout takes its random bits from.
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultipliers[] = {0xD2511F53u, 0xCD9E8D57u};
constexpr uint32_t kPhiloxKeySteps[] = {0x9E3779B9u, 0xBB67AE85u};

// Bytes: outputs from the first size up keep their memory when they die, up to the second in all
// where LLAMA_FAST_CACHE_MB does not say otherwise.
constexpr size_t kMinCachedOutput = size_t{4} << 20;
constexpr size_t kDefaultOutputCache = size_t{512} << 20;

// Begins the message of an error where memory runs out.
#define LF_NOT_ENOUGH_MEMORY "not enough memory"

}  // namespace llama_fast
