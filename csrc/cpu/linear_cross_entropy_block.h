// Linear cross-entropy of one row of a block of logits: statistics in the first pass, the gradient
// in the second, and how logits are kept from one to the other. The mathematics is written down in
// cross_entropy_row.h, whose loops these functions call.
#pragma once

#include "cpu/cross_entropy_row.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Classes in a block: whole panels of every mode, and no more than kBlock.
constexpr int64_t kBlockClasses = 480;

// What the first pass finds out about one row of one block; z are softcapped logits.
template <class A>
struct BlockStats {
  A reference;  // the largest z; 0 if that is -inf
  A sum;        // sum exp(z - reference); +inf if some z is, NaN if some z is NaN
};

// A row over all blocks, and what the second pass makes of it.
template <class A>
struct Row {
  A z_label;
  A shift, scale;  // gradient: exp(z - shift) * scale - flat * w
  A flat;
  A at_label;  // the gradient at the label's class
};

// z[0, n) = softcap(z + bias).
template <class A>
void finish_logits(A* z, int64_t n, const A* bias, double softcap) {
  constexpr int64_t lanes = kLanes<A>;
  if (bias != nullptr)
    for (int64_t c = 0; c < n; c += lanes) {
      const vec<A> b = n - c < lanes ? load_acc_n(bias + c, n - c, A(0)) : load(bias + c);
      store(z + c, load(z + c) + b);
    }
  if (softcap != 0) widen_block<A>(z, n, static_cast<A>(softcap), z);
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

// Logits kept between the passes. Half precision keeps their distance to the block's largest, which
// rounds the large probabilities least: to 2^-11 of themselves where the distance is below 2.
template <class A>
LF_INLINE void keep_block(const A* z, int64_t n, A, A* kept) {
  std::memcpy(kept, z, static_cast<size_t>(n) * sizeof(A));
}
LF_INLINE void keep_block(const float* z, int64_t n, float reference, f16* kept) {
  for_vectors(z, n, 0.0f, [&](vec<float> v, int64_t c) {
    if (n - c >= kLanes<float>)
      store_acc(kept + c, v - reference);
    else
      store_acc_n(kept + c, v - reference, n - c);
  });
}

template <class A>
LF_INLINE void recall_block(const A* kept, int64_t n, A, A* z) {
  std::memcpy(z, kept, static_cast<size_t>(n) * sizeof(A));
}
LF_INLINE void recall_block(const f16* kept, int64_t n, float reference, float* z) {
  for_vectors(kept, n, 0.0f, [&](vec<float> v, int64_t c) { store(z + c, v + reference); });
}

// z becomes the gradient. `spread` is null, or w_c times Row::flat is to be made there.
template <class A>
void block_gradient(const RowOptions<A>& o, const Row<A>& row, int64_t first, int64_t n, A* z) {
  A u[kBlockClasses + kLanes<A>];
  const A cap = o.softcap != 0 ? static_cast<A>(1 / o.softcap) : A(0);
  const bool spread = o.smoothing > 0 && o.weight != nullptr;
  if (spread) spread_target<A>(nullptr, o.weight + first, n, 0, 1, row.flat, u);
  if (spread && cap != 0)
    write_block<true, true, false>(z, z, n, row.shift, row.scale, A(0), u, cap);
  else if (spread)
    write_block<true, false, false>(z, z, n, row.shift, row.scale, A(0), u, cap);
  else if (cap != 0)
    write_block<false, true, false>(z, z, n, row.shift, row.scale, row.flat, u, cap);
  else
    write_block<false, false, false>(z, z, n, row.shift, row.scale, row.flat, u, cap);
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
