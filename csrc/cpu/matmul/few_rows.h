// Driver for few rows of A: C (m, n) = A (m, k) B', with the rows of B' in place. Reading B' takes
// most of the time, so each row of B' is read once, from end to end, for all rows of A.
//
// As many products of a row of A and a row of B' as a register has lanes are summed side by side,
// and their lanes are added together at the end. Hardware prefetchers do not follow several rows
// that are read at once, so the rows that come next are prefetched here.
#pragma once

#include "cpu/matmul/few_rows_amx.h"
#include "cpu/matmul/packing.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kRowsAhead = 16;  // rows of B' between prefetch and use

// Rows of A that are multiplied at a time, at most.
template <class Fma>
constexpr int kMaxFewRows = kLanes<typename Fma::acc> < 4 ? kLanes<typename Fma::acc> : 4;

// Rows of B' that are multiplied at a time with R rows of A: so many that the results fill a
// register, rounded down to a power of two.
template <class Fma, int R>
constexpr int kRowsOfB = R >= kLanes<typename Fma::acc> ? 1
                         : R == 3                       ? kLanes<typename Fma::acc> / 4
                                                        : kLanes<typename Fma::acc> / R;

// sums[r * W + w] = row r of A times row w of B' over k numbers; R and W do not change the order
// of the sum. kWhole: B' has W rows, and k is a multiple of Fma::kStep. Otherwise only the first
// b.rows rows of B' exist: the last one stands in for the others.
template <class Fma, int R, int W, bool kPrefetch, bool kWhole, class T>
LF_INLINE void dot_products(const typename Fma::elem* a, int64_t a_row, RowsInPlace<T> b, int64_t k,
                            typename Fma::acc* sums) {
  using A = typename Fma::acc;
  constexpr int kSums = R * W, lanes = kLanes<A>;
  constexpr int64_t step = Fma::kStep;
  const int64_t ahead = kRowsAhead * b.stride;
  vec<A> sum[kSums > lanes ? kSums : lanes];
#pragma GCC unroll 16
  for (vec<A>& s : sum) s = vec<A>{};
  int64_t i = 0;
  if constexpr (kWhole) {
    for (; i < k; i += step) {
      const T* row = b.p + i;
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w, row += b.stride) {
        if constexpr (kPrefetch) __builtin_prefetch(row + ahead, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sum[r * W + w] = Fma::fma(sum[r * W + w], a + r * a_row + i, row);
      }
    }
  } else {
    // Selected, not branched on: a compiler that knows two rows to be the same computes their
    // products once, and then no longer fuses them with the additions.
    const T* rows[W];
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) rows[w] = b.p + (w < b.rows ? w : b.rows - 1) * b.stride;
    for (; i + step <= k; i += step)
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w) {
        if constexpr (kPrefetch) __builtin_prefetch(rows[w] + ahead + i, 0, 2);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sum[r * W + w] = Fma::fma(sum[r * W + w], a + r * a_row + i, rows[w] + i);
      }
    if (i < k)
#pragma GCC unroll 16
      for (int w = 0; w < W; ++w)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          sum[r * W + w] = Fma::fma_n(sum[r * W + w], a + r * a_row + i, rows[w] + i, k - i);
  }
  if constexpr (lanes <= 2 * kSums && kSums <= lanes) {
    const vec<A> each = reduce_add_each<A>(sum);
    std::memcpy(sums, &each, kSums * sizeof(A));
  } else {
    for (int s = 0; s < kSums; ++s) sums[s] = reduce_add<A>(sum[s]);
  }
}

// write(row of A, row of B', element of C) for all rows of A and the rows [begin, end) of B'. A has
// rows up to a multiple of kMaxFewRows.
template <class Fma, class T, class Write>
void multiply_few_rows(FewRows<Fma> a, RowsInPlace<T> b, int64_t k, int64_t begin, int64_t end,
                       Write&& write) {
  const bool whole_steps = k % Fma::kStep == 0;
  const auto pass = [&](auto count) {
    constexpr int R = decltype(count)::value, W = kRowsOfB<Fma, R>;
    const auto tile = [&](int64_t r, int64_t row, auto prefetch) {
      typename Fma::acc sums[R * W];
      const RowsInPlace<T> some{b.p + row * b.stride, b.stride, min(W, end - row)};
      const auto* a_rows = a.p + r * a.width;
      if (whole_steps && some.rows == W)
        dot_products<Fma, R, W, decltype(prefetch)::value, true>(a_rows, a.width, some, k, sums);
      else
        dot_products<Fma, R, W, decltype(prefetch)::value, false>(a_rows, a.width, some, k, sums);
      for (int64_t i = 0; i < min(R, a.rows - r); ++i)
        for (int64_t w = 0; w < some.rows; ++w) write(r + i, row + w, sums[i * W + w]);
    };
    for (int64_t row = begin; row < end; row += W) {
      tile(0, row, std::true_type{});
      for (int64_t r = R; r < a.rows; r += R) tile(r, row, std::false_type{});
    }
  };
  if (a.rows == 1) return pass(std::integral_constant<int, 1>{});
  if (a.rows == 2) return pass(std::integral_constant<int, 2>{});
  pass(std::integral_constant<int, kMaxFewRows<Fma>>{});
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
