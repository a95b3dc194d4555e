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
#include <vector>

#include "cpu/linear_cross_entropy_loss.h"
#include "cpu/linear_cross_entropy_plan.h"
#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kPackRows = 16;      // rows of the weight that are packed together
constexpr double kWorthThreads = 1e6;  // multiplications

// M: mode of the products; T: type of input and weight.
template <class M, class T>
class Call {
  using A = typename M::acc;
  using E = typename M::elem;
  using Out = typename Plan<M, T>::Out;
  using Kept = typename Plan<M, T>::Kept;
  using Grad = typename Plan<M, T>::Grad;
  using Area = typename Plan<M, T>::Area;
  static constexpr bool kTwelve = std::is_same_v<Kept, Twelve>;

 public:
  explicit Call(LinearCrossEntropyArgs& args) : a_(args), l_(args), p_(args) { p_.make(tokens()); }

  void run() {
    threads_ = worth_threads() ? num_threads() : 1;
    const Workspace workspace(p_.carve(Carver(), threads_));
    p_.carve(Carver(workspace.data()), threads_);
    clear_ignored();
    for (int64_t first = 0; first < tokens(); first += rows_) {
      first_ = first;
      rows_ = std::min(first == 0 ? p_.first_chunk : p_.later_chunk, tokens() - first);
      kept_rows_ = std::min(rows_, p_.hold + (first == 0 || p_.wide ? p_.region : 0));
      in_region_ = std::min(kept_rows_, first == 0 || p_.wide ? p_.region : 0);
      chunk();
    }
    if (tokens() == 0 || p_.wide) finish_weight_gradient();
    l_.reduce();
  }

 private:
  int64_t tokens() const { return static_cast<int64_t>(l_.kept.size()); }

  bool worth_threads() const {
    return static_cast<double>(tokens()) * a_.classes * a_.features > kWorthThreads;
  }

  // f(item, a thread's area) for all items, on all threads.
  template <class F>
  void parallel(int64_t items, F&& f) {
    const int64_t threads = std::min<int64_t>(threads_, items);
    std::atomic<int64_t> next{0};
    parallel_ranges(threads, 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin)
        for (int64_t i = next++; i < items; i = next++) f(i, p_.areas[static_cast<size_t>(begin)]);
    });
  }

  // --- the sweeps -----------------------------------------------------------------------------

  void chunk() {
    pack_input();
    const int64_t items = row_items();
    const int64_t packs = panels(kBlockClasses);
    parallel(packs, [&](int64_t i, Area&) { pack_across(0, i, p_.weight_panels[0]); });
    for (int64_t b = 0; b < p_.blocks(); ++b)
      parallel(items + (b + 1 < p_.blocks() ? packs : 0), [&](int64_t i, Area& area) {
        if (i < items)
          first_sweep(b, i, p_.weight_panels[b % 2], area);
        else
          pack_across(b + 1, i - items, p_.weight_panels[(b + 1) % 2]);
      });
    parallel_ranges(rows_, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) finish_row(r);
    });
    if (!p_.wants_gradient()) return;

    const int64_t across = kept_rows_ < rows_ ? packs : 0;
    const int64_t along = p_.wants_input() ? kBlockClasses / kPackRows : 0;
    const auto pack = [&](int64_t b, int64_t i) {
      if (i < across)
        pack_across(b, i, p_.weight_panels[0]);
      else
        pack_along(b, i - across, p_.weight_panels[1]);
    };
    parallel(across + along, [&](int64_t i, Area&) { pack(0, i); });
    for (int64_t b = 0; b < p_.blocks(); ++b) {
      // Rows without kept logits are the last, and take longest: they go first.
      parallel(items, [&](int64_t i, Area& area) { second_sweep(b, items - 1 - i, area); });
      const int64_t sums = weight_items(b);
      parallel(sums + (b + 1 < p_.blocks() ? across + along : 0), [&](int64_t i, Area& area) {
        if (i < sums)
          weight_gradient(b, i, area);
        else
          pack(b + 1, i - sums);
      });
    }
    if (p_.wants_input()) write_input_gradient();
  }

  static int64_t panels(int64_t n) {
    const int64_t width = kPanelVecs * kLanes<A>;
    return (n + width - 1) / width;
  }

  // Sets the rows of a work item: such that all threads have the same to do.
  int64_t row_items() {
    int64_t least = rows_ * threads_ + kItemRows;
    for (int64_t size = kItemRows; size >= kPanelRows; size -= kPanelRows) {
      const int64_t items = (rows_ + size - 1) / size;
      const int64_t longest = (items + threads_ - 1) / threads_ * size;
      if (longest >= least) continue;
      least = longest;
      item_rows_ = size;
    }
    return (rows_ + item_rows_ - 1) / item_rows_;
  }

  const T* input_row(int64_t r) const {
    return static_cast<const T*>(a_.input) + token(r) * a_.input_stride;
  }

  // The rows of the chunk, gathered in small groups so that panels can be made of them.
  void pack_input() {
    const int64_t groups = (rows_ + kPanelRows - 1) / kPanelRows;
    const int64_t chunk_steps = steps<M>(rows_);
    parallel(groups, [&](int64_t group, Area& area) {
      const int64_t r0 = group * kPanelRows, rows = std::min(kPanelRows, rows_ - r0);
      T* gathered = reinterpret_cast<T*>(area.logits);
      const int64_t piece = kItemRows * kBlockClasses / kPanelRows;  // a multiple of every panel
      for (int64_t e = 0; e < a_.features; e += piece) {
        const int64_t n = std::min(piece, a_.features - e);
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(static_cast<void*>(gathered + r * piece), input_row(r0 + r) + e,
                      static_cast<size_t>(n) * sizeof(T));
        panel_across<M>(gathered, piece, rows, n,
                        p_.input_across + r0 * p_.depth + e / M::kPack * kPanelRows, kPanelRows);
        if (!p_.wants_weight()) continue;
        for_panels<M>(round_lanes<M>(n), [&](int64_t c, int64_t width) {
          panel_along<M>(gathered + c, piece, rows, n - c,
                         p_.input_along + (e + c) * chunk_steps + r0 / M::kPack * width, width);
        });
      }
    });
  }

  const T* weight_row(int64_t c) const {
    return static_cast<const T*>(a_.linear_weight) + c * a_.linear_weight_stride;
  }

  // Panel i of a block of the weight, for the logits.
  void pack_across(int64_t b, int64_t i, E* packed) {
    const int64_t n = p_.block_classes(b), c = i * kPanelVecs * kLanes<A>;
    if (c >= n) return;
    const int64_t width = std::min(round_lanes<M>(n) - c, int64_t{kPanelVecs} * kLanes<A>);
    panel_across<M>(weight_row(b * kBlockClasses + c), a_.linear_weight_stride,
                    std::min(n - c, width), a_.features, packed + c * p_.depth, width);
  }

  // Rows [kPackRows * i, kPackRows * (i + 1)) of a block of the weight, for the input's gradient.
  void pack_along(int64_t b, int64_t i, E* packed) {
    const int64_t n = p_.block_classes(b), c = i * kPackRows;
    if (c >= n) return;
    for_panels<M>(p_.width, [&](int64_t e, int64_t width) {
      panel_along<M>(weight_row(b * kBlockClasses + c) + e, a_.linear_weight_stride,
                     std::min(kPackRows, n - c), a_.features - e,
                     packed + e * steps<M>(n) + c / M::kPack * width, width);
    });
  }

  // logits = those of rows [r0, r0 + m) and block b without softcap, padded to the lanes.
  void make_logits(int64_t b, int64_t r0, int64_t m, const E* packed, A* logits, E* scratch) {
    const int64_t n = p_.block_classes(b);
    const A* bias = static_cast<const A*>(a_.linear_bias);
    if (p_.depth == 0) std::fill(logits, logits + m * kBlockClasses, A(0));
    multiply<M>(round_up(m, kBlockRows), round_lanes<M>(n), p_.depth,
                p_.input_across + r0 * p_.depth, packed, logits, kBlockClasses, false, scratch);
    for (int64_t i = 0; i < m && bias != nullptr; ++i)
      add_bias(logits + i * kBlockClasses, n, bias + b * kBlockClasses);
  }

  // Where the logits of a kept row of the chunk are.
  char* kept_logits(int64_t b, int64_t r) {
    const int64_t bytes = kept_bytes<Kept>(p_.block_classes(b));
    if (r >= in_region_) return p_.held + b * p_.hold_block + (r - in_region_) * bytes;
    if (b + 1 == p_.blocks() && !p_.last_fits) return p_.last + r * bytes;
    auto* gradient = static_cast<Out*>(a_.grad_linear_weight) + b * kBlockClasses * a_.features;
    return reinterpret_cast<char*>(gradient) + r * bytes;
  }

  void first_sweep(int64_t b, int64_t item, const E* packed, Area& area) {
    const int64_t r0 = item * item_rows_, m = std::min(item_rows_, rows_ - r0);
    const int64_t first = b * kBlockClasses, n = p_.block_classes(b);
    A u[kBlockClasses + kLanes<A>];
    const bool spread = a_.label_smoothing > 0;
    const double each = a_.label_smoothing / static_cast<double>(a_.classes);
    if (spread)
      spread_target<A>(nullptr, l_.options.weight ? l_.options.weight + first : nullptr, n, 0, each,
                       1, u);
    make_logits(b, r0, m, packed, area.logits, area.multiply);
    for (int64_t i = 0; i < m; ++i) {
      A* z = area.logits + i * kBlockClasses;
      const int64_t r = r0 + i, at = b * p_.stride + r;
      const int64_t y = label(r) - first;
      const bool keep = p_.wants_gradient() && r < kept_rows_;
      if (y >= 0 && y < n) p_.row[r].label = z[y];
      if (a_.argmax) {
        const int64_t best = row_argmax(z, n);
        p_.best[at] = {z[best], static_cast<int32_t>(best)};
      }
      if constexpr (!kTwelve)
        if (keep) keep_block(Kept(), z, n, A(0), a_.softcap, kept_logits(b, r));
      if (a_.softcap != 0) widen_block<A>(z, n, static_cast<A>(a_.softcap), z);
      const BlockStats<A> s = p_.stats[at] = block_stats(z, n);
      if (spread) {
        double weights = 0, weighted = 0;
        block_weighted_sums(z, u, n, s.reference, &weights, &weighted);
        if (l_.options.weight == nullptr) weights = each * static_cast<double>(n);
        p_.spread[at] = weighted + weights * s.reference;
      }
      if constexpr (kTwelve)
        if (keep) keep_block(Kept(), z, n, s.reference, a_.softcap, kept_logits(b, r));
    }
  }

  int64_t token(int64_t r) const { return l_.kept[static_cast<size_t>(first_ + r)]; }
  int64_t label(int64_t r) const { return a_.target[token(r)]; }

  // What the blocks of a row come to: loss, statistics, and how to make its gradient.
  void finish_row(int64_t r) {
    const int64_t n = token(r);
    double top = -kInfinity, sum = 0, spread_z = 0, special = 0;
    for (int64_t b = 0; b < p_.blocks(); ++b) {
      const BlockStats<A>& s = p_.stats[b * p_.stride + r];
      if (s.sum > 0 && s.reference > top) top = s.reference;
      if (!std::isfinite(s.sum)) special += s.sum;  // NaN and inf make NaN
      if (a_.label_smoothing > 0) spread_z += p_.spread[b * p_.stride + r];
    }
    for (int64_t b = 0; b < p_.blocks(); ++b) {
      const BlockStats<A>& s = p_.stats[b * p_.stride + r];
      if (s.sum != 0) sum += s.sum * std::exp(s.reference - top);
    }
    if (special != 0) top = sum = kNan;
    const double log_sum = std::log(sum);
    const double lse = special != 0 ? special : sum == 0 ? -kInfinity : top + log_sum;

    Row<A>& row = p_.row[r];
    const double e = a_.label_smoothing, each = e / static_cast<double>(a_.classes);
    const double w = l_.options.weight ? l_.options.weight[label(r)] : 1;
    const double z = one_logit(&row.label, a_.softcap);
    l_.losses[n] = (1 - e) * w * (log_sum - (z - top));
    if (e > 0) l_.losses[n] += each * l_.options.weight_sum * (top + log_sum) - spread_z;
    l_.z_losses[n] = a_.z_loss != 0 ? a_.z_loss * lse * lse : 0;
    static_cast<A*>(a_.lse)[n] = static_cast<A>(lse);
    if (a_.argmax) a_.argmax[n] = argmax(r);

    double g = 1;
    if (a_.grad_loss)
      g = static_cast<const A*>(a_.grad_loss)[a_.reduction == Reduction::none ? n : 0];
    const double g_z = a_.z_loss != 0 ? g / l_.z_denominator : 0;
    g /= l_.denominator;
    double scale = g * ((1 - e) * w + each * l_.options.weight_sum);
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
    for (int64_t b = 0; b < p_.blocks(); ++b) {
      const BlockStats<A>& s = p_.stats[b * p_.stride + r];
      const bool nan = std::isnan(s.sum);
      const Best<A>& found = p_.best[b * p_.stride + r];
      if (!nan && (s.sum == 0 || found.logit <= largest)) continue;
      largest = found.logit;
      best = b * kBlockClasses + found.at;
      if (nan) break;
    }
    return best;
  }

  void second_sweep(int64_t b, int64_t item, Area& area) {
    const int64_t r0 = item * item_rows_, m = std::min(item_rows_, rows_ - r0);
    const int64_t first = b * kBlockClasses, n = p_.block_classes(b), kk = steps<M>(n);
    const int64_t kept = std::max<int64_t>(0, std::min(m, kept_rows_ - r0));
    if (kept < m)
      make_logits(b, r0 + kept, m - kept, p_.weight_panels[0], area.logits + kept * kBlockClasses,
                  area.multiply);
    for (int64_t i = 0; i < m; ++i) {
      A* z = area.logits + i * kBlockClasses;
      const int64_t r = r0 + i, y = label(r) - first;
      if (i < kept)
        recall_block(Kept(), kept_logits(b, r), n, p_.stats[b * p_.stride + r].reference,
                     a_.softcap, z);
      block_gradient(l_.options, p_.row[r], first, n, kTwelve && i < kept, z);
      if (y >= 0 && y < n) z[y] = p_.row[r].at_label;
      if constexpr (M::kPack == 2)
        for_vectors(z, n, A(0), [&](vec<A> v, int64_t c) {
          store_acc(area.narrow + i * kBlockClasses + c, v);
        });
    }
    const Grad* grad;
    if constexpr (M::kPack == 2)
      grad = area.narrow;
    else
      grad = area.logits;
    if (p_.wants_weight() || p_.wants_bias())
      for (int64_t c = 0; c < n; c += kPanelRows)
        panel_along<M>(grad + c, kBlockClasses, m, n - c,
                       p_.grad_along + c * steps<M>(rows_) + r0 / M::kPack * kPanelRows,
                       kPanelRows);
    if (!p_.wants_input()) return;
    for (int64_t i = 0; i < m; i += kPanelRows)
      panel_across<M>(grad + i * kBlockClasses, kBlockClasses, std::min(kPanelRows, m - i), n,
                      area.across + i * kk, kPanelRows);
    multiply<M>(round_up(m, kBlockRows), p_.width, kk, area.across, p_.weight_panels[1],
                p_.grad_input + r0 * p_.width, p_.width, b > 0, area.multiply);
  }

  int64_t weight_items(int64_t b) {
    if (!p_.wants_weight() && !p_.wants_bias()) return 0;
    item_classes_ = std::min(kItemClasses, round_up(kBlockClasses / threads_, 3 * kPanelRows));
    return (p_.block_classes(b) + item_classes_ - 1) / item_classes_;
  }

  // Some classes of a block: the sum over the rows of the chunk.
  void weight_gradient(int64_t b, int64_t item, Area& area) {
    const int64_t c0 = item * item_classes_, m = std::min(item_classes_, p_.block_classes(b) - c0);
    const int64_t first = b * kBlockClasses + c0, kk = steps<M>(rows_);
    const E* grad = p_.grad_along + c0 * kk;
    if (p_.wants_bias()) {
      A* out = static_cast<A*>(a_.grad_linear_bias) + first;
      for (int64_t c = 0; c < m; c += kPanelRows) {
        double sum[kPanelRows];
        panel_sums<M>(grad + c * kk, kk, sum);
        for (int64_t i = 0; i < std::min(kPanelRows, m - c); ++i)
          out[c + i] = static_cast<A>(sum[i] + (first_ > 0 ? out[c + i] : 0));
      }
    }
    if (!p_.wants_weight()) return;
    multiply<M>(round_up(m, kBlockRows), p_.width, kk, grad, p_.input_along, area.product, p_.width,
                false, area.multiply);
    for (int64_t i = 0; i < m; ++i) {
      const A* from = area.product + i * p_.width;
      if (p_.wide)
        write_row(from, a_.features, first_ > 0, p_.wide_gradient + (first + i) * p_.width);
      else
        write_row(from, a_.features, first_ > 0,
                  static_cast<Out*>(a_.grad_linear_weight) + (first + i) * a_.features);
    }
  }

  void write_input_gradient() {
    parallel_ranges(rows_, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        write_row(p_.grad_input + r * p_.width, a_.features, false,
                  static_cast<Out*>(a_.grad_input) + token(r) * a_.features);
    });
  }

  // --- what the sweeps leave to be done ---------------------------------------------------------

  void clear_ignored() {
    for (int64_t n = 0; n < a_.tokens; ++n) {
      if (a_.target[n] != a_.ignore_index) continue;
      static_cast<A*>(a_.lse)[n] = 0;
      if (a_.argmax) a_.argmax[n] = -1;
      if (p_.wants_input())
        std::memset(static_cast<Out*>(a_.grad_input) + n * a_.features, 0,
                    static_cast<size_t>(a_.features) * sizeof(Out));
    }
  }

  void finish_weight_gradient() {
    Out* out = static_cast<Out*>(a_.grad_linear_weight);
    if (p_.wide) {
      parallel_ranges(a_.classes, 64, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c)
          write_row(p_.wide_gradient + c * p_.width, a_.features, false, out + c * a_.features);
      });
      return;
    }
    if (p_.wants_weight())
      std::memset(out, 0, static_cast<size_t>(a_.classes * a_.features) * sizeof(Out));
    if (p_.wants_bias())
      std::memset(a_.grad_linear_bias, 0, static_cast<size_t>(a_.classes) * sizeof(A));
  }

  const LinearCrossEntropyArgs& a_;
  Losses<A> l_;

  // The chunk at work: rows [first_, first_ + rows_) of the kept tokens.
  int64_t first_ = 0, rows_ = 0, kept_rows_ = 0, in_region_ = 0;
  int64_t item_rows_ = 0, item_classes_ = 0;

  int64_t threads_ = 1;
  Plan<M, T> p_;
};

template <class M, class T>
void run(LinearCrossEntropyArgs& a) {
  Call<M, T>(a).run();
}

}  // namespace

void linear_cross_entropy(LinearCrossEntropyArgs& a) {
  switch (a.dtype) {
    case DType::f64:
      return run<F64, double>(a);
    case DType::f32:
      return run<F32, float>(a);
    case DType::f16:
      return run<F32, f16>(a);
    case DType::bf16:
#if defined(__AVX512BF16__)
      return run<Bf16, bf16>(a);
#else
      return run<F32, bf16>(a);
#endif
  }
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
