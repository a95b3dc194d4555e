// Loss and gradient of one row of logits together, with one exponential per logit.
//
// For the plain case: a class index as target, no softcap, no smoothing. cross_entropy_row.h has
// the formulas and the general case, which computes every exponential twice. This makes three
// passes over the row: maximum; exponentials and their sum; gradient. Only the first pass reads
// memory, because the second prefetches the next row.
#pragma once

#include "cpu/cross_entropy_row.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Writes exp(x - shift) for n logits to `out` and returns their sum; prefetches `next`. x may be
// out.
template <class T>
LF_INLINE acc_t<T> exponentials(const T* x, int64_t n, acc_t<T> shift, const T* next,
                                acc_t<T>* out) {
  using A = acc_t<T>;
  constexpr int kChains = 4;
  constexpr int64_t lanes = kLanes<A>, step = kChains * lanes;
  vec<A> sum[kChains] = {};
  int64_t c = 0;
  for (; c + step <= n; c += step) {
#pragma GCC unroll 8
    for (int k = 0; k < kChains; ++k) {
      const vec<A> e = exp_for<T>(load_acc(x + c + k * lanes) - shift);
      store(out + c + k * lanes, e);
      sum[k] += e;
    }
    for (int64_t byte = 0; byte < step * static_cast<int64_t>(sizeof(T)); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(next + c) + byte, 0, 2);
  }
  for (; c < n; c += lanes) {
    const int64_t count = min(n - c, lanes);
    constexpr A lowest = -std::numeric_limits<A>::infinity();
    const vec<A> e = exp_for<T>(load_acc_n(x + c, count, lowest) - shift);
    store_acc_n(out + c, e, count);
    sum[0] += e;
  }
  return reduce_add<A>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Whether fused_row() supports these options (except for rows whose maximum is infinite).
template <class A>
bool is_plain(const RowOptions<A>& o) {
  return o.softcap == 0 && o.smoothing == 0 && !std::is_same_v<A, double>;
}

// Cross-entropy of the row x against class y, and its gradient over x, for the upstream gradients g
// and g_z of row_gradient(). `e` has room for the row, or is x itself. Returns false and changes
// nothing if the largest logit is infinite.
template <class T>
bool fused_row(const RowOptions<acc_t<T>>& o, T* x, int64_t y, double g, double g_z, const T* next,
               acc_t<T>* e, RowLoss* loss) {
  using A = acc_t<T>;
  const A max = block_max(x, o.classes);
  if (!std::isfinite(max)) return false;
  const double z = load_one(x + y), w = o.weight ? o.weight[y] : 1;
  double sum = 0;
  for (int64_t begin = 0; begin < o.classes; begin += kBlock) {
    const int64_t n = min(o.classes - begin, kBlock);
    sum += exponentials(x + begin, n, max, next + begin, e + begin);
  }
  const double log_sum = std::log(sum);
  loss->max = max;
  loss->sum = sum;
  loss->lse = max + log_sum;
  loss->cross_entropy = w * (log_sum - (z - max));

  const double scale = (g * w + (g_z != 0 ? g_z * 2 * o.z_loss * loss->lse : 0)) / sum;
  const A factor = static_cast<A>(scale);
  for_vectors(e, o.classes, A(0), [&](vec<A> v, int64_t c) {
    const int64_t left = o.classes - c;
    if (left >= kLanes<A>) {
      store_acc(x + c, v * factor);
    } else {
      store_acc_n(x + c, v * factor, left);
    }
  });
  // In double, because p and the target nearly cancel here.
  store_one(x + y, static_cast<A>(std::exp(z - max) * scale - g * w));
  return true;
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
