// Linear cross-entropy of one row of a block of logits: statistics in the first sweep, the gradient
// in the second, and the storage of logits in between. The formulas are in cross_entropy_row.h,
// whose loops these functions call.
#pragma once

#include <algorithm>

#include "cpu/cross_entropy_row.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Classes in a block: a multiple of every panel width (LargePanels) and of pairs of registers, and
// no more than kBlock.
constexpr int64_t kBlockClasses = 480;

// Statistics of one row of one block, made by the first sweep; z are softcapped logits.
template <class A>
struct BlockStats {
  A reference;  // the largest z; 0 if that is -inf
  A sum;        // sum exp(z - reference); +inf if some z is, NaN if some z is NaN
};

// The first of a row's largest logits in one block, before the softcap, which may round different
// logits to the same number.
template <class A>
struct BlockArgmax {
  A logit;
  int32_t at;  // class, from the block's first
};

// The numbers with which the second sweep computes the gradient of a row's logits:
// exp(z - shift) * scale - flat * w, and at_label at the label's class.
template <class A>
struct RowGradient {
  A label;  // its logit, without softcap
  A shift, scale, flat, at_label;
};

// x[0, n) += bias.
template <class A>
void add_bias(A* x, int64_t n, const A* bias) {
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t c = 0; c < n; c += lanes) {
    const vec<A> b = n - c < lanes ? load_acc_n(bias + c, n - c, A(0)) : load(bias + c);
    store(x + c, load(x + c) + b);
  }
}

template <class A>
BlockStats<A> block_stats(const A* z, int64_t n) {
  BlockStats<A> s;
  A unused;
  s.reference = block_max(z, n);
  if (s.reference == -std::numeric_limits<A>::infinity()) s.reference = 0;
  s.sum = block_exp_sum(z, n, s.reference, &unused);
  if (std::isnan(s.sum)) s.sum = static_cast<A>(lse_of_special_row(z, n));
  return s;
}

// Logits kept between the sweeps: as they are, before the softcap, or after it as 12-bit codes. A
// code is the distance from the block's largest logit in steps of 1/128, which is the rounding of a
// bfloat16 logit between 1 and 2, or in finer steps where a softcap keeps all logits close
// together.
//
// Without a softcap the last code stands for a distance of 32 and more, where the probability is
// zero for every purpose: it is read back as -inf. With a softcap the gradient has the factor
// 1 - (z / softcap)^2, also where a part of the target is spread over the classes, so every logit
// is needed: beyond a distance of 20, where a probability is 2e-9 of the largest, the steps are as
// wide as it takes to reach 2 softcap, the largest distance there can be.
struct Code12 {};

constexpr float kCodesPerUnit = 128;
constexpr int32_t kLastCode = 4095, kFineCodes = 20 * 128;

inline float codes_per_unit(double softcap) {
  if (softcap == 0) return kCodesPerUnit;
  return std::max(kCodesPerUnit, static_cast<float>(kLastCode / (2 * softcap)));
}

// The width of the steps after the first kFineCodes, minus the width of those.
inline float extra_width(double softcap) {
  const double reach = 2 * softcap - kFineCodes / double{kCodesPerUnit};
  const double width = reach / (kLastCode - kFineCodes) - 1 / double{kCodesPerUnit};
  return width > 0 ? static_cast<float>(width) : 0.0f;
}

template <class K>
LF_INLINE int64_t kept_bytes(int64_t n) {
  if constexpr (std::is_same_v<K, Code12>) {
    constexpr int64_t pair = 2 * kLanes<float>;
    return (n + pair - 1) / pair * pair * 3 / 2;
  } else {
    return n * static_cast<int64_t>(sizeof(K));
  }
}

template <class A>
void keep_block(A, const A* z, int64_t n, A, double, char* kept) {
  std::memcpy(kept, z, static_cast<size_t>(n) * sizeof(A));
}

template <class A>
void recall_block(A, const char* kept, int64_t n, A, double, A* z) {
  std::memcpy(z, kept, static_cast<size_t>(n) * sizeof(A));
}

typedef int32_t vec_code __attribute__((vector_size(kVecBytes)));
typedef uint8_t vec_u8 __attribute__((vector_size(kVecBytes / 4)));  // lanes of a vec<float>

// Stores the low eight bits of every code, then the high four bits of two registers of codes
// together.
inline void keep_block(Code12, const float* z, int64_t n, float reference, double softcap,
                       char* kept) {
  constexpr int64_t lanes = kLanes<float>;
  char* high = kept + kept_bytes<Code12>(n) / 3 * 2;
  constexpr float fine = kFineCodes;
  const float per_unit = codes_per_unit(softcap);
  const float shrink = 1 / (1 + extra_width(softcap) * kCodesPerUnit);
  const auto code = [&](int64_t c) {
    const vec<float> v = n - c >= lanes ? load(z + c)
                         : n - c > 0    ? load_acc_n(z + c, n - c, reference)
                                        : set1(reference);
    vec<float> down = (reference - v) * per_unit;
    if (softcap != 0) down = down > fine ? fine + (down - fine) * shrink : down;
    down += 0.5f;
    constexpr auto last = static_cast<float>(kLastCode);
    return __builtin_convertvector(down < last ? down : set1(last), vec_code);  // NaN is `last`
  };
  for (int64_t c = 0; c < n; c += 2 * lanes) {
    const vec_code a = code(c), b = code(c + lanes);
    const vec_u8 parts[] = {__builtin_convertvector(a & 255, vec_u8),
                            __builtin_convertvector(b & 255, vec_u8)};
    const vec_u8 both = __builtin_convertvector(a >> 8 | (b >> 8) << 4, vec_u8);
    std::memcpy(kept + c, parts, sizeof parts);
    std::memcpy(high + c / 2, &both, sizeof both);
  }
}

// Writes whole pairs of registers.
inline void recall_block(Code12, const char* kept, int64_t n, float reference, double softcap,
                         float* z) {
  constexpr int64_t lanes = kLanes<float>;
  const char* high = kept + kept_bytes<Code12>(n) / 3 * 2;
  const float extra = extra_width(softcap), width = 1 / codes_per_unit(softcap);
  const auto logits = [&](vec_code code) {
    const vec<float> steps = __builtin_convertvector(code, vec<float>);
    const vec<float> v = reference - steps * width;
    if (softcap == 0) return code == kLastCode ? set1(-std::numeric_limits<float>::infinity()) : v;
    const vec<float> wide = steps - static_cast<float>(kFineCodes);
    return v - (wide > 0.0f ? wide * extra : vec<float>{});
  };
  for (int64_t c = 0; c < n; c += 2 * lanes) {
    vec_u8 parts[2], both;
    std::memcpy(parts, kept + c, sizeof parts);
    std::memcpy(&both, high + c / 2, sizeof both);
    const vec_code top = __builtin_convertvector(both, vec_code);
    store(z + c, logits(__builtin_convertvector(parts[0], vec_code) | (top & 15) << 8));
    store(z + c + lanes, logits(__builtin_convertvector(parts[1], vec_code) | (top >> 4) << 8));
  }
}

// Replaces logits by their gradient. `capped`: the softcap was applied already.
template <class A>
void block_gradient(const RowOptions<A>& o, const RowGradient<A>& row, int64_t first, int64_t n,
                    bool capped, A* z) {
  A u[kBlockClasses + kLanes<A>], tanh[kBlockClasses + kLanes<A>];
  const A cap = static_cast<A>(o.softcap);
  if (cap != 0 && !capped)
    squash_block(z, n, cap, z, tanh);
  else if (cap != 0)
    for (int64_t c = 0; c < n; c += kLanes<A>) store(tanh + c, load(z + c) / cap);
  const bool spread = o.smoothing > 0 && o.weight != nullptr;
  if (spread) spread_target<A>(nullptr, o.weight + first, n, 0, 1, row.flat, u);
  if (spread && cap != 0)
    write_block<true, true, false>(z, z, n, row.shift, row.scale, A(0), u, tanh);
  else if (spread)
    write_block<true, false, false>(z, z, n, row.shift, row.scale, A(0), u, tanh);
  else if (cap != 0)
    write_block<false, true, false>(z, z, n, row.shift, row.scale, row.flat, u, tanh);
  else
    write_block<false, false, false>(z, z, n, row.shift, row.scale, row.flat, u, tanh);
}

// Writes n numbers, or adds them to the present ones. `from` is padded to whole vectors.
template <class A, class To>
void write_row(const A* from, int64_t n, bool add, To* to) {
  for_vectors(from, n, A(0), [&](vec<A> v, int64_t c) {
    const int64_t left = n - c;
    if (left >= kLanes<A>)
      store_acc(to + c, add ? v + load_acc(to + c) : v);
    else
      store_acc_n(to + c, add ? v + load_acc_n(to + c, left, A(0)) : v, left);
  });
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
