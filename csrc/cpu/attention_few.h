// Scores of a few queries, with keys read in place. The forward kernel for few queries and the
// backward pass of these calls must sum in the same order: probabilities are exp(score - lse), and
// another order would be an error in every large score.
#pragma once

#include "cpu/attention_tile.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int kMaxRowsTogether = 4;  // rows for which a key or value is read once

// Whether attention_decode.cpp computes the forward pass of these arguments.
LF_INLINE bool has_few_rows(const AttentionArgs& a) {
  return a.kv_heads > 0 && a.heads / a.kv_heads * a.queries <= kFewRows && !(a.dropout_p > 0);
}

// f(number of rows, first row) for all rows, a few at a time.
template <class F>
LF_INLINE void for_row_groups(int64_t n, F&& f) {
  int64_t r = 0;
  for (; r + kMaxRowsTogether <= n; r += kMaxRowsTogether)
    f(std::integral_constant<int, kMaxRowsTogether>{}, r);
  if (n - r == 3) f(std::integral_constant<int, 3>{}, r);
  if (n - r == 2) f(std::integral_constant<int, 2>{}, r);
  if (n - r == 1) f(std::integral_constant<int, 1>{}, r);
}

// How queries of mode M are multiplied with keys of type Elem.
template <class M, class Elem>
struct KeyFma {
  using type = WideningFma<Elem>;
};
#if defined(LF_BF16_PRODUCTS)
template <class Elem>
struct KeyFma<Bf16, Elem> {
  using type = PairFma;
};
#endif

// scores[r][j] = q_r . k_j for `Count` rows of q and the keys k, of `size` numbers each. Memory
// after them is not read.
template <class M, int Count, class Elem>
void few_scores(const typename M::raw* q, int64_t q_row, RowsInPlace<Elem> k, int64_t size,
                typename M::acc* scores) {
  using Fma = typename KeyFma<M, Elem>::type;
  // Of pairs, one query at a time: the keys stay in the first-level cache. Of numbers, few keys at
  // a time: hardware prefetchers do not follow many rows that are read at once.
  constexpr int R = M::kPack == 1 ? Count : 1;
  constexpr int W = M::kPack > 1 ? kRowsOfB<Fma, R> : R == 1 ? 1 : min(4, kRowsOfB<Fma, R>);
  const bool whole_steps = size % Fma::kStep == 0;
  for (int64_t j = 0; j < k.rows; j += W) {
    const RowsInPlace<Elem> some{k.p + j * k.stride, k.stride, min(W, k.rows - j)};
    for (int r = 0; r < Count; r += R) {
      typename M::acc sums[R * W];
      typename M::acc* out = scores + r * kTileKeys + j;
      if (whole_steps && some.rows == W) {
        dot_products<Fma, R, W, false, true>(q + r * q_row, q_row, some, size, sums);
        for (int i = 0; i < R; ++i)
          std::memcpy(out + i * kTileKeys, sums + i * W, W * sizeof *sums);
      } else {
        dot_products<Fma, R, W, false, false>(q + r * q_row, q_row, some, size, sums);
        for (int i = 0; i < R; ++i)
          for (int64_t w = 0; w < some.rows; ++w) out[i * kTileKeys + w] = sums[i * W + w];
      }
    }
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
