// One row of the online softmax (Milakov and Gimelshein, 2018), for all forward kernels.
#pragma once

#include "cpu/attention_tile.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// The running maximum of a row is raised only when a score exceeds it by more than this: the
// probabilities then stay below e^5.5, far from overflow in every format, and few rows need to be
// rescaled.
constexpr double kSlack = 5.5;

// Turns `width` scores x (whole registers) times `scale` into probabilities relative to the row's
// running maximum and passes them to store(column, register). Updates the row's maximum, sum,
// and sum of values o (value_size long, whole registers).
template <class M, class Store>
LF_INLINE void softmax_row(const typename M::acc* x, int64_t width, typename M::acc scale,
                           typename M::acc& row_max, wide<typename M::acc>& row_sum,
                           typename M::acc* o, int64_t value_size, Store&& store_at) {
  using T = typename M::acc;
  using V = vec<T>;
  constexpr int lanes = kLanes<T>;
  V largest = set1(-kInfinity<T>);
  for (int64_t c = 0; c < width; c += lanes) largest = vmax(load(x + c) * scale, largest);
  const T tile_max = reduce_max<T>(largest), old_max = row_max;
  if (tile_max > old_max + static_cast<T>(kSlack) || old_max == -kInfinity<T>) {
    if (tile_max == -kInfinity<T>) {  // every key so far is masked
      // The maximum ignores a NaN; this sum does not.
      V any = V{};
      for (int64_t c = 0; c < width; c += lanes) {
        const V score = load(x + c);
        any += score == score ? V{} : score;
        store_at(c, V{});
      }
      row_sum += reduce_add<T>(any);
      return;
    }
    row_max = tile_max;
    if (old_max != -kInfinity<T>) {
      const T shrink = std::exp(old_max - tile_max);
      row_sum *= shrink;
      for (int64_t c = 0; c < value_size; c += lanes) store(o + c, load(o + c) * shrink);
    }
  }
  const T shift = row_max;
  V total = V{};
  for (int64_t c = 0; c < width; c += lanes) {
    const V p = exp_softmax<M>(load(x + c) * scale - shift);
    total += p;
    store_at(c, p);
  }
  row_sum += reduce_add<T>(total);
}

// Finishes query i: adds the sink to the sum, divides the sum of values o by it, and writes both.
template <class M>
void finish_row(const AttentionArgs& a, const Sequence& s, int64_t head, int64_t i,
                typename M::acc largest, wide<typename M::acc> total, typename M::acc* o) {
  using T = typename M::acc;
  T shrink = 1;
  if (a.sinks != nullptr) {
    const T sink = static_cast<const T*>(a.sinks)[head];
    const T with_sink = sink > largest ? sink : largest;
    shrink = largest == -kInfinity<T> ? T(0) : std::exp(largest - with_sink);
    total *= shrink;
    if (sink != -kInfinity<T>) total += std::exp(wide<T>(sink) - with_sink);
    largest = with_sink;
  }
  const bool empty = total == 0;  // no visible key: zeros
  const T factor = empty ? T(0) : static_cast<T>(shrink / total);
  for (int64_t c = 0; c < padded<M>(a.value_size); c += kLanes<T>)
    store(o + c, load(o + c) * factor);
  const int64_t row = s.first_query + i;
  write_row(a.out, a.dtype, s.batch, head, row, a.value_size, o);
  const wide<T> log_sum = std::log(total);
  const T high = empty ? -kInfinity<T> : static_cast<T>(largest + log_sum);
  at<T>(a.lse, s.batch, head, row) = high;
  // If every score is the lowest finite number (an additive mask), log_sum is lost even in the
  // wider type, and the difference to `largest` is exact.
  const wide<T> low = (wide<T>(largest) - high) + log_sum;
  at<T>(a.lse_low, s.batch, head, row) = std::isfinite(high) ? static_cast<T>(low) : T(0);
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
