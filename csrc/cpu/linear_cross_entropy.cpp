// Linear cross-entropy: loss and gradients in two sweeps over blocks of classes.
//
// The first sweep makes the logits of a block (one matrix product) and from them the sums that the
// loss needs. The second turns them into their own gradient, block by block, and multiplies that
// into the gradients of input and weight. In between the logits are kept where there is room: in
// the weight gradient's own memory, whose rows of a block are written only after its logits were
// used, and in some working memory. Logits of other rows are computed again.
//
// After Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models"
// (arXiv:2411.09009), which recomputes all logits.
#include "cpu/linear_cross_entropy.h"

#include <algorithm>

#include "cpu/linear_cross_entropy_chunk.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// M: element types of the products; T: type of input and weight.
template <class M, class T>
class LinearCrossEntropy {
  using A = typename M::acc;
  using E = typename M::elem;
  using Out = typename Plan<M, T>::Out;
  using Kept = typename Plan<M, T>::Kept;
  using Grad = typename Plan<M, T>::Grad;
  using ThreadBuffers = typename Plan<M, T>::ThreadBuffers;
  static constexpr bool kCodes = std::is_same_v<Kept, Code12>;

 public:
  explicit LinearCrossEntropy(LinearCrossEntropyArgs& args) : a_(args), chunk_(args) {}

  void run() {
    const Workspace workspace(plan_.carve(Carver(), chunk_.threads));
    plan_.carve(Carver(workspace.data()), chunk_.threads);
    clear_ignored();
    for (int64_t first = 0; first < chunk_.tokens(); first += chunk_.rows) {
      chunk_.start(first);
      sweep_chunk();
    }
    if (chunk_.tokens() == 0 || plan_.wide) finish_weight_gradient();
    losses_.reduce();
  }

 private:
  void sweep_chunk() {
    chunk_.pack_input();
    const int64_t items = chunk_.row_items(), panels = Chunk<M, T>::kBlockPanelCount;
    E* const* packed = plan_.weight_panels;
    chunk_.parallel(
        panels, [&](int64_t i, ThreadBuffers&) { chunk_.pack_weight_transposed(0, i, packed[0]); });
    for (int64_t b = 0; b < plan_.blocks(); ++b)
      chunk_.parallel(items + (b + 1 < plan_.blocks() ? panels : 0),
                      [&](int64_t i, ThreadBuffers& own) {
                        if (i < items)
                          first_sweep(b, i, packed[b % 2], own);
                        else
                          chunk_.pack_weight_transposed(b + 1, i - items, packed[(b + 1) % 2]);
                      });
    parallel_ranges(chunk_.rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) finish_row(r);
    });
    if (!plan_.wants_gradient()) return;

    const int64_t transposed = chunk_.kept_rows < chunk_.rows ? panels : 0;
    const int64_t along = plan_.wants_input() ? kBlockClasses / kPackRows : 0;
    const auto pack = [&](int64_t b, int64_t i) {
      if (i < transposed)
        chunk_.pack_weight_transposed(b, i, packed[0]);
      else
        chunk_.pack_weight_along(b, i - transposed, packed[1]);
    };
    chunk_.parallel(transposed + along, [&](int64_t i, ThreadBuffers&) { pack(0, i); });
    for (int64_t b = 0; b < plan_.blocks(); ++b) {
      // Rows without kept logits are the last, and take longest: they go first.
      chunk_.parallel(items,
                      [&](int64_t i, ThreadBuffers& own) { second_sweep(b, items - 1 - i, own); });
      const int64_t sums = weight_items(b);
      chunk_.parallel(sums + (b + 1 < plan_.blocks() ? transposed + along : 0),
                      [&](int64_t i, ThreadBuffers& own) {
                        if (i < sums)
                          weight_gradient(b, i, own);
                        else
                          pack(b + 1, i - sums);
                      });
    }
    if (plan_.wants_input()) write_input_gradient();
  }

  void first_sweep(int64_t b, int64_t item, const E* packed, ThreadBuffers& own) {
    const int64_t r0 = item * chunk_.item_rows, m = min(chunk_.item_rows, chunk_.rows - r0);
    const int64_t first = b * kBlockClasses, n = plan_.block_classes(b);
    A u[kBlockClasses + kLanes<A>];
    const bool spread = a_.label_smoothing > 0;
    const double each = a_.label_smoothing / static_cast<double>(a_.classes);
    if (spread)
      spread_target<A>(nullptr, losses_.options.weight ? losses_.options.weight + first : nullptr,
                       n, 0, each, 1, u);
    chunk_.make_logits(b, r0, m, packed, own.logits, own.multiply_scratch);
    for (int64_t i = 0; i < m; ++i) {
      A* z = own.logits + i * kBlockClasses;
      const int64_t r = r0 + i, at = b * plan_.stride + r;
      const int64_t y = chunk_.label(r) - first;
      const bool keep = plan_.wants_gradient() && r < chunk_.kept_rows;
      if (y >= 0 && y < n) plan_.row_gradients[r].label = z[y];
      if (a_.argmax) {
        const int64_t best = row_argmax(z, n);
        plan_.argmax[at] = {z[best], static_cast<int32_t>(best)};
      }
      if constexpr (!kCodes)
        if (keep) keep_block(Kept(), z, n, A(0), a_.softcap, chunk_.kept_logits(b, r));
      if (a_.softcap != 0) widen_block<A>(z, n, static_cast<A>(a_.softcap), z);
      const BlockStats<A> s = plan_.stats[at] = block_stats(z, n);
      if (spread) {
        double weights = 0, weighted = 0;
        block_weighted_sums(z, u, n, s.reference, &weights, &weighted);
        if (losses_.options.weight == nullptr) weights = each * static_cast<double>(n);
        plan_.spread[at] = weighted + weights * s.reference;
      }
      if constexpr (kCodes)
        if (keep) keep_block(Kept(), z, n, s.reference, a_.softcap, chunk_.kept_logits(b, r));
    }
  }

  // Combines the blocks of a row: loss, statistics, and what its gradient needs.
  void finish_row(int64_t r) {
    const int64_t n = chunk_.token(r);
    double top = -kInfinity, sum = 0, spread_z = 0, special = 0;
    for (int64_t b = 0; b < plan_.blocks(); ++b) {
      const BlockStats<A>& s = plan_.stats[b * plan_.stride + r];
      if (s.sum > 0 && s.reference > top) top = s.reference;
      if (!std::isfinite(s.sum)) special += s.sum;  // NaN and inf make NaN
      if (a_.label_smoothing > 0) spread_z += plan_.spread[b * plan_.stride + r];
    }
    for (int64_t b = 0; b < plan_.blocks(); ++b) {
      const BlockStats<A>& s = plan_.stats[b * plan_.stride + r];
      if (s.sum != 0) sum += s.sum * std::exp(s.reference - top);
    }
    if (special != 0) top = sum = kNan;
    const double log_sum = std::log(sum);
    const double lse = special != 0 ? special : sum == 0 ? -kInfinity : top + log_sum;

    RowGradient<A>& row = plan_.row_gradients[r];
    const double e = a_.label_smoothing, each = e / static_cast<double>(a_.classes);
    const double w = losses_.options.weight ? losses_.options.weight[chunk_.label(r)] : 1;
    const double z = one_logit(&row.label, a_.softcap);
    losses_.losses[n] = (1 - e) * w * (log_sum - (z - top));
    if (e > 0) losses_.losses[n] += each * losses_.options.weight_sum * (top + log_sum) - spread_z;
    losses_.z_losses[n] = a_.z_loss != 0 ? a_.z_loss * lse * lse : 0;
    static_cast<A*>(a_.lse)[n] = static_cast<A>(lse);
    if (a_.argmax) a_.argmax[n] = argmax(r);

    double g = 1;
    if (a_.grad_loss)
      g = static_cast<const A*>(a_.grad_loss)[a_.reduction == Reduction::none ? n : 0];
    const double g_z = a_.z_loss != 0 ? g / losses_.z_denominator : 0;
    g /= losses_.denominator;
    double scale = g * ((1 - e) * w + each * losses_.options.weight_sum);
    if (g_z != 0) scale += g_z * 2 * a_.z_loss * lse;
    if (a_.grad_lse) {
      g = 0;
      scale = static_cast<const A*>(a_.grad_lse)[n];
    }
    double at_label = std::exp(z - top) / sum * scale - g * w * (1 - e + each);
    at_label *= slope_at(&row.label, a_.softcap);
    row.shift = static_cast<A>(top);
    row.scale = static_cast<A>(scale / sum);
    row.flat = static_cast<A>(g * each);
    row.at_label = static_cast<A>(at_label);
  }

  // The first class with the largest logit, or with a NaN.
  int64_t argmax(int64_t r) const {
    int64_t best = 0;
    double largest = -kInfinity;
    for (int64_t b = 0; b < plan_.blocks(); ++b) {
      const BlockStats<A>& s = plan_.stats[b * plan_.stride + r];
      const bool nan = std::isnan(s.sum);
      const BlockArgmax<A>& found = plan_.argmax[b * plan_.stride + r];
      if (!nan && (s.sum == 0 || found.logit <= largest)) continue;
      largest = found.logit;
      best = b * kBlockClasses + found.at;
      if (nan) break;
    }
    return best;
  }

  void second_sweep(int64_t b, int64_t item, ThreadBuffers& own) {
    const int64_t r0 = item * chunk_.item_rows, m = min(chunk_.item_rows, chunk_.rows - r0);
    const int64_t first = b * kBlockClasses, n = plan_.block_classes(b), kk = steps<M>(n);
    const int64_t kept = max(0, min(m, chunk_.kept_rows - r0));
    if (kept < m)
      chunk_.make_logits(b, r0 + kept, m - kept, plan_.weight_panels[0],
                         own.logits + kept * kBlockClasses, own.multiply_scratch);
    for (int64_t i = 0; i < m; ++i) {
      A* z = own.logits + i * kBlockClasses;
      const int64_t r = r0 + i, y = chunk_.label(r) - first;
      if (i < kept)
        recall_block(Kept(), chunk_.kept_logits(b, r), n,
                     plan_.stats[b * plan_.stride + r].reference, a_.softcap, z);
      block_gradient(losses_.options, plan_.row_gradients[r], first, n, kCodes && i < kept, z);
      if (y >= 0 && y < n) z[y] = plan_.row_gradients[r].at_label;
      if constexpr (M::kPack > 1)
        for_vectors(z, n, A(0),
                    [&](vec<A> v, int64_t c) { store_acc(own.grad + i * kBlockClasses + c, v); });
    }
    const Grad* grad;
    if constexpr (M::kPack > 1)
      grad = own.grad;
    else
      grad = own.logits;
    if (plan_.wants_weight() || plan_.wants_bias())
      for (int64_t c = 0; c < n; c += kPanelRows)
        pack_panel_along<M>(
            grad + c, kBlockClasses, m, n - c,
            plan_.grad_along + c * steps<M>(chunk_.rows) + r0 / M::kPack * kPanelRows, kPanelRows);
    if (!plan_.wants_input()) return;
    for (int64_t i = 0; i < m; i += kPanelRows)
      pack_panel_transposed<M>(grad + i * kBlockClasses, kBlockClasses, min(kPanelRows, m - i), n,
                               own.grad_transposed + i * kk, kPanelRows);
    multiply_large<M>(round_up(m, kLargeTileRows), plan_.width, kk, own.grad_transposed,
                      plan_.weight_panels[1], plan_.grad_input + r0 * plan_.width, plan_.width,
                      b > 0, own.multiply_scratch);
  }

  int64_t weight_items(int64_t b) {
    if (!plan_.wants_weight() && !plan_.wants_bias()) return 0;
    item_classes_ = min(kItemClasses, round_up(kBlockClasses / chunk_.threads, 3 * kPanelRows));
    return ceil_div(plan_.block_classes(b), item_classes_);
  }

  // Some classes of a block: the sum over the rows of the chunk.
  void weight_gradient(int64_t b, int64_t item, ThreadBuffers& own) {
    const int64_t c0 = item * item_classes_, m = min(item_classes_, plan_.block_classes(b) - c0);
    const int64_t first = b * kBlockClasses + c0, kk = steps<M>(chunk_.rows);
    const E* grad = plan_.grad_along + c0 * kk;
    if (plan_.wants_bias()) {
      A* out = static_cast<A*>(a_.grad_linear_bias) + first;
      for (int64_t c = 0; c < m; c += kPanelRows) {
        double sum[kPanelRows];
        sum_panel_columns<M>(grad + c * kk, kk, sum);
        for (int64_t i = 0; i < min(kPanelRows, m - c); ++i)
          out[c + i] = static_cast<A>(sum[i] + (chunk_.first > 0 ? out[c + i] : 0));
      }
    }
    if (!plan_.wants_weight()) return;
    multiply_large<M>(round_up(m, kLargeTileRows), plan_.width, kk, grad, plan_.input_along,
                      own.product, plan_.width, false, own.multiply_scratch);
    for (int64_t i = 0; i < m; ++i) {
      const A* from = own.product + i * plan_.width;
      if (plan_.wide)
        write_row(from, a_.features, chunk_.first > 0,
                  plan_.wide_gradient + (first + i) * plan_.width);
      else
        write_row(from, a_.features, chunk_.first > 0,
                  static_cast<Out*>(a_.grad_linear_weight) + (first + i) * a_.features);
    }
  }

  void write_input_gradient() {
    parallel_ranges(chunk_.rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        write_row(plan_.grad_input + r * plan_.width, a_.features, false,
                  static_cast<Out*>(a_.grad_input) + chunk_.token(r) * a_.features);
    });
  }

  // --- before and after the sweeps --------------------------------------------------------------

  void clear_ignored() {
    for (int64_t n = 0; n < a_.tokens; ++n) {
      if (a_.target[n] != a_.ignore_index) continue;
      static_cast<A*>(a_.lse)[n] = 0;
      if (a_.argmax) a_.argmax[n] = -1;
      if (plan_.wants_input())
        std::memset(static_cast<Out*>(a_.grad_input) + n * a_.features, 0,
                    static_cast<size_t>(a_.features) * sizeof(Out));
    }
  }

  void finish_weight_gradient() {
    Out* out = static_cast<Out*>(a_.grad_linear_weight);
    if (plan_.wide) {
      parallel_ranges(a_.classes, 64, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c)
          write_row(plan_.wide_gradient + c * plan_.width, a_.features, false,
                    out + c * a_.features);
      });
      return;
    }
    if (plan_.wants_weight())
      std::memset(out, 0, static_cast<size_t>(a_.classes * a_.features) * sizeof(Out));
    if (plan_.wants_bias())
      std::memset(a_.grad_linear_bias, 0, static_cast<size_t>(a_.classes) * sizeof(A));
  }

  const LinearCrossEntropyArgs& a_;
  Chunk<M, T> chunk_;
  Losses<A>& losses_ = chunk_.losses;
  Plan<M, T>& plan_ = chunk_.plan;
  int64_t item_classes_ = 0;  // of a work item of the weight gradient
};

template <class M, class T>
void linear_cross_entropy_of(LinearCrossEntropyArgs& a) {
  LinearCrossEntropy<M, T>(a).run();
}

}  // namespace

void linear_cross_entropy(LinearCrossEntropyArgs& a) {
  switch (a.dtype) {
    case DType::f64:
      return linear_cross_entropy_of<F64, double>(a);
    case DType::f32:
      return linear_cross_entropy_of<F32, float>(a);
    case DType::f16:
      return linear_cross_entropy_of<F32, f16>(a);
    case DType::bf16:
#if defined(LF_BF16_PRODUCTS)
      return linear_cross_entropy_of<Bf16, bf16>(a);
#else
      return linear_cross_entropy_of<F32, bf16>(a);
#endif
  }
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
