// C (m, n) += A (m, k) B (k, n) for few rows of A and few rows of B, which is read in place: sums
// of the rows of B, weighted by A. Attention of few queries uses it to read each value once.
//
// The sums of a call are computed separately and then added to C: thousands of small additions to a
// large sum would have larger rounding errors.
#pragma once

#include "cpu/matmul/operands.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// For `Vecs` registers of columns, of which the last holds `filled` numbers.
template <int Count, int Vecs, class T, class Elem>
LF_INLINE void weigh_columns(const T* a, int64_t a_row, const Elem* b, int64_t b_row, int64_t k,
                             int64_t filled, T* c, int64_t c_row) {
  constexpr int lanes = kLanes<T>;
  vec<T> sum[Count][Vecs];
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) sum[r][v] = vec<T>{};
  for (int64_t j = 0; j < k; ++j, b += b_row)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) {
      const Elem* from = b + v * lanes;
      const vec<T> value = filled == lanes ? load_acc(from) : load_acc_n(from, filled, T(0));
#pragma GCC unroll 4
      for (int r = 0; r < Count; ++r) sum[r][v] += a[r * a_row + j] * value;
    }
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vecs; ++v) {
      T* to = c + r * c_row + v * lanes;
      store(to, load(to) + sum[r][v]);
    }
}

#if defined(LF_BF16_PRODUCTS)
// For columns that fill `Vecs` registers of pairs or less: two rows of B at a time.
template <int Count, int Vecs, class Elem>
LF_INLINE void weigh_pairs(const uint16_t* a, int64_t a_row, const Elem* b, int64_t b_row,
                           int64_t k, int64_t columns, float* c, int64_t c_row) {
  constexpr int lanes = kLanes<float>;
  vec<float> sum[Count][2 * Vecs];
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 2 * Vecs; ++v) sum[r][v] = vec<float>{};
  for (int64_t j = 0; j < k; j += 2, b += 2 * b_row)
#pragma GCC unroll 2
    for (int v = 0; v < Vecs; ++v) {
      const Elem* from = b + v * 2 * lanes;
      const int64_t left = columns - v * 2 * lanes;
      const Pairs first = load_pairs(from, left);
      const Pairs second = j + 1 < k ? load_pairs(from + b_row, left) : Pairs{};
      const Pairs low = pair_low(first, second);
      const Pairs high = pair_high(first, second);
#pragma GCC unroll 4
      for (int r = 0; r < Count; ++r) {
        int32_t pair;
        std::memcpy(&pair, a + r * a_row + j, sizeof pair);
        sum[r][2 * v] = add_product(sum[r][2 * v], repeat_pair(pair), low);
        sum[r][2 * v + 1] = add_product(sum[r][2 * v + 1], repeat_pair(pair), high);
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < 2 * Vecs; ++v) {
      float* to = c + r * c_row + v * lanes;
      store(to, load(to) + sum[r][v]);
    }
}
#endif

// Puts the sums of a row of C, n numbers in whole pairs of registers, in the order of the columns.
// Unpacking interleaves quarters of a register: of two registers of 16 sums, the first has columns
// 0-3, 8-11, 16-19 and 24-27, the second those between. Registers of 4 are in order.
template <class M>
void weighted_rows_in_order(int64_t n, typename M::acc* c) {
  if constexpr (M::kPack > 1 && kLanes<typename M::acc> > 4) {
    constexpr int lanes = kLanes<typename M::acc>;
    for (int64_t begin = 0; begin < n; begin += 2 * lanes, c += 2 * lanes) {
      typename M::acc mixed[2 * lanes];
      std::memcpy(mixed, c, sizeof mixed);
      for (int i = 0; i < 2 * lanes; ++i) c[i] = mixed[i / 4 % 2 * lanes + i / 8 * 4 + i % 4];
    }
  }
}

// C += A B for `Count` rows of A, of type M::raw, over k rows of B with n numbers each. Rows of C
// have whole registers. Sums of Bf16 come out mixed: see weighted_rows_in_order.
template <class M, int Count, class Elem>
void add_weighted_rows(const typename M::raw* a, int64_t a_row, const Elem* b, int64_t b_row,
                       int64_t k, int64_t n, typename M::acc* c, int64_t c_row) {
  constexpr int64_t lanes = kLanes<typename M::acc>;
  int64_t at = 0;
#if defined(LF_BF16_PRODUCTS)
  if constexpr (M::kPack > 1) {
    for (; at + 4 * lanes <= n; at += 4 * lanes)
      weigh_pairs<Count, 2>(a, a_row, b + at, b_row, k, 4 * lanes, c + at, c_row);
    for (; at < n; at += 2 * lanes)
      weigh_pairs<Count, 1>(a, a_row, b + at, b_row, k, n - at, c + at, c_row);
    return;
  }
#endif
  if constexpr (M::kPack == 1) {
    for (; at + 4 * lanes <= n; at += 4 * lanes)
      weigh_columns<Count, 4>(a, a_row, b + at, b_row, k, lanes, c + at, c_row);
    for (; at + lanes <= n; at += lanes)
      weigh_columns<Count, 1>(a, a_row, b + at, b_row, k, lanes, c + at, c_row);
    if (at < n) weigh_columns<Count, 1>(a, a_row, b + at, b_row, k, n - at, c + at, c_row);
  }
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
