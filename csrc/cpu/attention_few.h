// Products of a few queries with keys that lie one after another, unpacked. The forward kernel for
// few queries and the backward of the same calls make them alike: probabilities are exp(score -
// lse), and another order of summing would be an error of every large score.
#pragma once

#include "cpu/attention_tile.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int kFewTogether = 4;  // rows that share one reading of a key or value

// Whether the forward pass of these arguments is that of attention_decode.cpp.
LF_INLINE bool has_few_rows(const AttentionArgs& a) {
  return a.kv_heads > 0 && a.heads / a.kv_heads * a.queries <= kFewRows && !(a.dropout_p > 0);
}

// f(number of rows, first row) for all rows, a few at a time.
template <class F>
LF_INLINE void by_rows(int64_t n, F&& f) {
  int64_t r = 0;
  for (; r + kFewTogether <= n; r += kFewTogether)
    f(std::integral_constant<int, kFewTogether>{}, r);
  if (n - r == 3) f(std::integral_constant<int, 3>{}, r);
  if (n - r == 2) f(std::integral_constant<int, 2>{}, r);
  if (n - r == 1) f(std::integral_constant<int, 1>{}, r);
}

#if defined(__AVX512BF16__)
// The first n numbers of a register of pairs, then zeros.
LF_INLINE __m512i load_pairs(const void* p, int64_t n) {
  if (n >= 2 * kLanes<float>) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << n) - 1, p);
}

// The first n of as many keys as a register has lanes; further scores are those of the last one.
// `kEasy`: they are as many as lanes, and fill whole registers.
template <bool kEasy, class Elem>
LF_INLINE vec<float> scores_of_pairs(const uint16_t* q, const Elem* k, int64_t k_row, int64_t size,
                                     int64_t n) {
  constexpr int lanes = kLanes<float>;
  vec<float> sum[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) sum[i] = vec<float>{};
  for (int64_t c = 0; c < size; c += 2 * lanes) {
    const int64_t filled = kEasy ? 2 * lanes : size - c;
    const __m512i query = load_pairs(q + c, filled);  // what lies behind may be NaN, times 0 too
    const Elem* key = k + c;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      sum[i] = Bf16::fma(sum[i], query, load_pairs(key, filled));
      if (kEasy || i + 1 < n) key += k_row;
    }
  }
  return reduce_add_each<float>(sum);
}
#endif

// out[r][j] = q_r . k_j for `Count` rows of q and n keys, of `size` numbers each. What follows them
// in memory is not read.
template <class M, int Count, class Elem>
void few_scores(const typename M::raw* q, int64_t q_row, const Elem* k, int64_t k_row, int64_t size,
                int64_t n, typename M::acc* out) {
  using T = typename M::acc;
  using V = vec<T>;
  constexpr int lanes = kLanes<T>;
  if constexpr (M::kPack == 1) {
    const int64_t whole = size / lanes * lanes, rest = size - whole;
    for (int64_t j = 0; j < n; ++j, k += k_row) {
      V sum[Count] = {};
      for (int64_t c = 0; c < whole; c += lanes) {
        const V key = load_acc(k + c);
#pragma GCC unroll 4
        for (int r = 0; r < Count; ++r) sum[r] += load(q + r * q_row + c) * key;
      }
      if (rest > 0) {
        const V key = load_acc_n(k + whole, rest, T(0));
#pragma GCC unroll 4
        for (int r = 0; r < Count; ++r) sum[r] += load(q + r * q_row + whole) * key;
      }
#pragma GCC unroll 4
      for (int r = 0; r < Count; ++r) out[r * kKeys + j] = reduce_add<T>(sum[r]);
    }
  } else {
#if defined(__AVX512BF16__)
    // One query at a time: the keys stay in the first-level cache, and the sums over the lanes of
    // all their products are made together.
    for (int64_t j = 0; j < n; j += lanes, k += lanes * k_row) {
      const bool easy = n - j >= lanes && size % (2 * lanes) == 0;
      for (int r = 0; r < Count; ++r) {
        const uint16_t* query = q + r * q_row;
        store(out + r * kKeys + j,
              easy ? scores_of_pairs<true>(query, k, k_row, size, lanes)
                   : scores_of_pairs<false>(query, k, k_row, size, smaller(lanes, n - j)));
      }
    }
#endif
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
