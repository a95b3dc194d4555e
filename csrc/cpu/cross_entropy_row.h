// Softmax cross-entropy of one row of logits that lies contiguous in memory.
//
//   z = x  or  softcap * tanh(x / softcap)          lse = log sum_c exp(z_c)
//   t = the target as probabilities: (1 - e) [c == y] + e / V,  or  (1 - e) q_c + e / V
//   loss = sum_c w_c t_c (lse - z_c) + z_loss * lse^2       p_c = exp(z_c - lse)
//   dloss/dz_c = p_c * (sum_k w_k t_k + 2 z_loss lse) - w_c t_c
//   dlse/dz_c = p_c          d/dx_c = d/dz_c * (1 - (z_c / softcap)^2)
//
// Within a block (cross_entropy_block.h) sums are in the accumulation type, between blocks in
// double.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/cross_entropy_block.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Arguments that all rows of a call share. A is the accumulation type.
template <class A>
struct RowOptions {
  int64_t classes;
  const A* weight;    // or null
  double weight_sum;  // sum_c w_c; V without weights
  double smoothing, softcap, z_loss;
  bool stream;  // store gradients past the caches
};

struct RowLoss {
  double cross_entropy, lse;
  double max, sum;  // lse = max + log(sum); `max` is some logit, not always the largest
};

// Sum of term(i) for i in [begin, end), pairwise: in a fixed order, and with little rounding.
template <class F>
double pairwise_sum(int64_t begin, int64_t end, const F& term) {
  if (end - begin > 16) {
    const int64_t middle = begin + (end - begin) / 2;
    return pairwise_sum(begin, middle, term) + pairwise_sum(middle, end, term);
  }
  double sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += term(i);
  return sum;
}

// One logit, rounded as widen_block() rounds it. The sum of the row was taken over such logits:
// where the target has nearly all of the probability, a logit that differs in its last digit would
// make the gradient wrong.
template <class T>
LF_INLINE double one_logit(const T* x, double softcap) {
  using A = acc_t<T>;
  A z[kLanes<A>];
  widen_block<T>(x, 1, static_cast<A>(softcap), z);
  return z[0];
}

// The derivative of the softcap, 1 without one.
template <class T>
LF_INLINE double slope_at(const T* x, double softcap) {
  const double tanh = softcap != 0 ? std::tanh(load_one(x) / softcap) : 0;
  return 1 - tanh * tanh;
}

// The log-sum-exp of a row whose sum of exponentials came out NaN: NaN if a logit is NaN, and
// +inf if one is +inf (the only other way to get there).
template <class T>
double lse_of_special_row(const T* x, int64_t classes) {
  for (int64_t c = 0; c < classes; ++c)
    if (std::isnan(load_one(x + c))) return kNan;
  return kInfinity;
}

// Cross-entropy against class y, or against the probabilities q when q is not null.
template <class T>
RowLoss row_loss(const RowOptions<acc_t<T>>& o, const T* x, int64_t y, const acc_t<T>* q) {
  using A = acc_t<T>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  // Exponentials are taken relative to `max`, the largest logit of some block so far. Growth by
  // up to e^8 is left in the sum, because rescaling takes time.
  constexpr A kSlack = 8;
  A max = lowest, reference = 0;
  double sum = 0, spread_weights = 0, spread_weighted = 0;
  const bool spread = q != nullptr || o.smoothing > 0;
  const double each = o.smoothing / static_cast<double>(o.classes);
  for_blocks(x, o.classes, o.softcap, [&](const auto* z, int64_t begin, int64_t n) {
    A block = lowest;
    if (max == lowest) {  // nothing finite yet
      max = block_max(z, n);
      reference = max == lowest ? A(0) : max;
      sum += block_exp_sum(z, n, reference, &block);
    } else {
      A part = block_exp_sum(z, n, max, &block);
      if (block > max + kSlack) {
        sum *= std::exp(static_cast<double>(max) - block);
        max = block;
        part = block_exp_sum(z, n, max, &block);
      }
      sum += part;
    }
    if (spread) {
      A u[kBlock];
      spread_target<A>(q ? q + begin : nullptr, o.weight ? o.weight + begin : nullptr, n,
                       o.smoothing, each, 1, u);
      block_weighted_sums(z, u, n, reference, &spread_weights, &spread_weighted);
    }
  });

  RowLoss r;
  r.max = max;
  r.sum = sum;
  const double log_sum = std::log(sum);
  r.lse = sum == 0 ? -kInfinity : max + log_sum;
  if (std::isnan(sum)) r.lse = lse_of_special_row(x, o.classes);
  // Differences of logits first: lse itself may be large, and rounded.
  r.cross_entropy = 0;
  if (q == nullptr) {
    const double w = o.weight ? o.weight[y] : 1;
    r.cross_entropy = (1 - o.smoothing) * w * (log_sum - (one_logit(x + y, o.softcap) - max));
  }
  if (q == nullptr) spread_weights = each * o.weight_sum;
  if (spread) r.cross_entropy += spread_weights * (log_sum + (max - reference)) - spread_weighted;
  return r;
}

// The numbers that turn logits of a row into probabilities: p_c = exp(z_c - shift) * factor.
template <class A>
struct Softmax {
  A shift;
  double factor;
};

template <class T>
Softmax<acc_t<T>> row_softmax(const RowOptions<acc_t<T>>& o, const T* x, double lse) {
  using A = acc_t<T>;
  // An lse rounded to double is not enough for double results, nor for logits so large that
  // log(sum) is lost in it (a row of the lowest finite numbers): take the sum again.
  constexpr double kTooLarge = 1e8;
  if (std::is_same_v<A, double> || (std::abs(lse) > kTooLarge && std::isfinite(lse))) {
    const RowLoss r = row_loss<T>(o, x, 0, nullptr);
    return {static_cast<A>(r.max), 1 / r.sum};
  }
  if (lse == kInfinity) lse = kNan;  // p = exp(inf - inf), as in torch
  const A shift = static_cast<A>(lse);
  return {shift, std::exp(shift - lse)};
}

// The gradient of one row for the upstream gradients `g` of its cross-entropy, `g_z` of its z-loss
// and `g_lse` of its log-sum-exp. dx may be x.
template <class T>
void row_gradient(const RowOptions<acc_t<T>>& o, const T* x, T* dx, int64_t y, const acc_t<T>* q,
                  double lse, double g, double g_z, double g_lse) {
  using A = acc_t<T>;
  const Softmax<A> softmax = row_softmax(o, x, lse);
  const double each = o.smoothing / static_cast<double>(o.classes);
  const bool spread = q != nullptr || (o.smoothing > 0 && o.weight != nullptr);
  const double w = q == nullptr && o.weight ? o.weight[y] : 1;
  double target_sum = (1 - o.smoothing) * w + each * o.weight_sum;  // sum_c w_c t_c
  if (q != nullptr) {
    double unused = 0;
    target_sum = 0;
    for (int64_t begin = 0; begin < o.classes; begin += kBlock) {
      A u[kBlock];
      const int64_t n = min(o.classes - begin, kBlock);
      spread_target<A>(q + begin, o.weight ? o.weight + begin : nullptr, n, o.smoothing, each, 1,
                       u);
      block_weighted_sums(u, u, n, A(0), &target_sum, &unused);
    }
  }
  const double scale = g * target_sum + (g_z != 0 ? g_z * 2 * o.z_loss * lse : 0) + g_lse;
  const A shift = softmax.shift, vector_scale = static_cast<A>(scale * softmax.factor);
  const A flat = spread ? A(0) : static_cast<A>(g * each);
  const A cap = static_cast<A>(o.softcap);

  // The target's own element, where p and t nearly cancel, in double. Read before x is gone.
  double at_target = 0;
  if (q == nullptr) {
    const double z = one_logit(x + y, o.softcap);
    at_target = std::exp(z - shift) * softmax.factor * scale - g * (1 - o.smoothing) * w;
    at_target -= g * each * (o.weight ? o.weight[y] : 1);
    at_target *= slope_at(x + y, o.softcap);
  }

  for (int64_t begin = 0; begin < o.classes; begin += kBlock) {
    const int64_t n = min(o.classes - begin, kBlock);
    const T* z = x + begin;
    A u[kBlock], capped[kBlock], tanh[kBlock];
    T* out = dx + begin;
    if (o.softcap != 0) squash_block(z, n, cap, capped, tanh);
    if (spread) {
      spread_target<A>(q ? q + begin : nullptr, o.weight ? o.weight + begin : nullptr, n,
                       o.smoothing, each, g, u);
    }
    if (spread && o.softcap != 0) {
      write_block<true, true, false>(capped, out, n, shift, vector_scale, flat, u, tanh);
    } else if (spread) {
      write_block<true, false, false>(z, out, n, shift, vector_scale, flat, u, tanh);
    } else if (o.softcap != 0) {
      write_block<false, true, false>(capped, out, n, shift, vector_scale, flat, u, tanh);
    } else if (kCanStream && o.stream) {
      write_block<false, false, kCanStream>(z, out, n, shift, vector_scale, flat, u, tanh);
    } else {
      write_block<false, false, false>(z, out, n, shift, vector_scale, flat, u, tanh);
    }
  }
  if (q == nullptr) store_one(dx + y, static_cast<A>(at_target));
}

// The first index of the largest logit, or of the first NaN.
template <class T>
int64_t row_argmax(const T* x, int64_t classes) {
  using A = acc_t<T>;
  A wide[kBlock];
  A best = -std::numeric_limits<A>::infinity();
  int64_t best_block = 0;
  bool nan = false;
  for (int64_t begin = 0; begin < classes && !nan; begin += kBlock) {
    const int64_t n = min(classes - begin, kBlock);
    auto unordered = vec<A>{} != vec<A>{};
    for_vectors(x + begin, n, A(0), [&](vec<A> v, int64_t) { unordered |= v != v; });
    for (int lane = 0; lane < kLanes<A>; ++lane) nan |= unordered[lane] != 0;
    const A largest = block_max(x + begin, n);
    if (nan || largest > best) {
      best = largest;
      best_block = begin;
    }
  }
  const int64_t n = min(classes - best_block, kBlock);
  widen_block<T>(x + best_block, n, A(0), wide);
  for (int64_t c = 0; c < n; ++c)
    if (nan ? std::isnan(wide[c]) : wide[c] == best) return best_block + c;
  return 0;
}

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
