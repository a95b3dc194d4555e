// Numbers per row that the backward pass of attention needs before it processes the tiles.
#pragma once

#include "cpu/attention_tile.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Rows that are summed at the same time, as each sum is a chain of dependent additions.
constexpr int64_t kDeltaRows = 8;

// Sums of x * y over kDeltaRows rows of length n, rounded like the tile product dO V': if one key
// has all the weight, dS is the difference of the two, and equal rounding errors cancel.
template <class T>
void product_order_dots(const T* x, const T* y, int64_t n, T* total) {
  for (int64_t r = 0; r < kDeltaRows; ++r) total[r] = 0;
  for (int64_t left = n, c = 0; left > 0;) {
    const int64_t run = run_steps(left);
    T sum[kDeltaRows] = {};
    for (const int64_t end = c + run; c < end; ++c)
#pragma GCC unroll 8
      for (int64_t r = 0; r < kDeltaRows; ++r) sum[r] = x[r * n + c] * y[r * n + c] + sum[r];
    for (int64_t r = 0; r < kDeltaRows; ++r) total[r] += sum[r];
    left -= run;
  }
}

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// The same of bfloat16 numbers, n a multiple of 4: a pair of them is one addition, as in bfmmla.
inline void product_order_dots(const uint16_t* x, const uint16_t* y, int64_t n, float* total) {
  constexpr int lanes = kLanes<float>;
  for (int64_t r = 0; r < kDeltaRows; r += lanes) {
    const auto pairs = [&](const uint16_t* rows, int64_t c) {
      uint32_t pair[lanes];
      for (int i = 0; i < lanes; ++i) std::memcpy(&pair[i], rows + (r + i) * n + c, sizeof pair[i]);
      return load_pairs(pair);
    };
    vec<float> sums = {};
    for (int64_t left = n / Bf16::kPack, c = 0; left > 0;) {
      const int64_t run = run_steps<kRun<Bf16>>(left);
      vec<float> sum = {};
      for (const int64_t end = c + run * Bf16::kPack; c < end; c += 2)
        sum = add_product(sum, pairs(x, c), pairs(y, c));
      sums += sum;
      left -= run;
    }
    store(total + r, sums);
  }
}
#endif

// delta = rowsum(dO * O) - dlse for every row, and the gradient of the sinks, whose probability
// exp(sink - lse) has no value: dsink = -sum over rows of exp(sink - lse) * delta.
template <class M>
void prepare(const AttentionArgs& a, int64_t sequence, int64_t head) {
  using T = typename M::acc;
  using Number = std::conditional_t<M::kPack == 4, uint16_t, T>;
  const Sequence s(a, sequence);
  const int64_t size = M::kPack == 4 ? round_up(a.value_size, M::kPack) : a.value_size;
  const int64_t numbers = kDeltaRows * size;
  auto* out =
      static_cast<Number*>(thread_scratch(static_cast<size_t>(2 * numbers) * sizeof(Number)));
  Number* grad = out + numbers;
  for (int64_t i = 0; i < 2 * numbers; ++i) out[i] = 0;  // rows beyond the last are summed too
  double sink_gradient = 0;
  for (int64_t i = 0; i < s.queries; i += kDeltaRows) {
    const int64_t first = s.first_query + i, rows = min(kDeltaRows, s.queries - i);
    for (int64_t r = 0; r < rows; ++r) {
      read_row(a.out, a.dtype, s.batch, head, first + r, a.value_size, out + r * size);
      read_row(a.grad_out, a.dtype, s.batch, head, first + r, a.value_size, grad + r * size);
    }
    T deltas[kDeltaRows];
    product_order_dots(out, grad, size, deltas);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first + r;
      if (a.grad_lse.data != nullptr) deltas[r] -= at<T>(a.grad_lse, s.batch, head, row);
      at<T>(a.delta, s.batch, head, row) = deltas[r];
      if (a.grad_sinks == nullptr) continue;
      const double lse = at<T>(a.lse, s.batch, head, row);
      const double low = at<T>(a.lse_low, s.batch, head, row);
      if (lse != -kInfinity<double>)
        sink_gradient -= std::exp(static_cast<const T*>(a.sinks)[head] - lse - low) * deltas[r];
    }
  }
  if (a.grad_sinks != nullptr) a.grad_sinks[sequence * a.heads + head] = sink_gradient;
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
