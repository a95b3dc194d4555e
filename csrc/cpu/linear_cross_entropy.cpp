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

#include "cpu/linear_cross_entropy_block.h"
#include "cpu/matmul.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kItemRows = 192;     // rows of logits in a work item
constexpr int64_t kItemClasses = 240;  // rows of the weight gradient in a work item
constexpr int64_t kPackRows = 16;      // rows of the weight that are packed together
constexpr int64_t kMinimumRows = 256;  // in a chunk; with fewer, reading the weight takes the time
constexpr size_t kLeast = 16 << 20;    // bytes of working memory that are never too many
constexpr double kMost = 512 << 20;
constexpr double kWorthThreads = 1e6;  // multiplications

// M: mode of the products; T: type of input and weight.
template <class M, class T>
class Call {
  using A = typename M::acc;
  using E = typename M::elem;
  using Out = std::conditional_t<std::is_same_v<T, f16>, float, T>;
  using Kept = std::conditional_t<std::is_same_v<T, bf16>, Twelve, A>;
  using Grad = std::conditional_t<M::kPack == 2, bf16, A>;  // of the logits, as it is multiplied

  struct Area {  // working memory of a thread
    A* logits = nullptr;
    Grad* narrow = nullptr;
    E* across = nullptr;
    A* product = nullptr;
  };

 public:
  explicit Call(LinearCrossEntropyArgs& args) : a_(args) {
    for (int64_t n = 0; n < a_.tokens; ++n)
      if (a_.target[n] != a_.ignore_index) kept_.push_back(n);
    options_.classes = a_.classes;
    options_.weight = static_cast<const A*>(a_.weight);
    options_.smoothing = a_.label_smoothing;
    options_.softcap = a_.softcap;
    options_.z_loss = a_.z_loss;
    options_.weight_sum = static_cast<double>(a_.classes);
    if (options_.weight != nullptr && a_.label_smoothing > 0) {
      options_.weight_sum =
          pairwise_sum(0, a_.classes, [&](int64_t c) { return options_.weight[c]; });
    }
    if (a_.reduction == Reduction::mean) {
      z_denominator_ = denominator_ = static_cast<double>(kept_.size());
      if (options_.weight != nullptr) {
        denominator_ = pairwise_sum(
            0, tokens(), [&](int64_t i) { return options_.weight[a_.target[kept_[size_t(i)]]]; });
      }
    }
    plan();
  }

  void run() {
    threads_ = worth_threads() ? num_threads() : 1;
    const Workspace workspace(carve(Carver(), threads_));
    carve(Carver(workspace.data()), threads_);
    losses_.resize(static_cast<size_t>(a_.tokens));
    z_losses_.resize(losses_.size());
    clear_ignored();
    for (int64_t first = 0; first < tokens(); first += rows_) {
      first_ = first;
      rows_ = std::min(first == 0 ? first_chunk_ : later_chunk_, tokens() - first);
      kept_rows_ = std::min(rows_, hold_ + (first == 0 || wide_ ? region_ : 0));
      in_region_ = std::min(kept_rows_, first == 0 || wide_ ? region_ : 0);
      chunk();
    }
    if (tokens() == 0 || wide_) finish_weight_gradient();
    reduce();
  }

 private:
  // --- how much memory for what ---------------------------------------------------------------

  bool wants_gradient() const { return wants_input() || wants_weight() || wants_bias(); }
  bool wants_input() const { return a_.grad_input != nullptr; }
  bool wants_weight() const { return a_.grad_linear_weight != nullptr; }
  bool wants_bias() const { return a_.grad_linear_bias != nullptr; }
  int64_t tokens() const { return static_cast<int64_t>(kept_.size()); }
  int64_t blocks() const { return (a_.classes + kBlockClasses - 1) / kBlockClasses; }

  // Working memory is kept below a tenth of what torch needs for logits, log-probabilities and
  // their gradient. The number of threads must play no part here: results depend on the plan.
  void plan() {
    depth_ = steps<M>(a_.features);
    width_ = round_lanes<M>(a_.features);
    const double torchs = 3.0 * a_.tokens * a_.classes * sizeof(T);
    const size_t budget = std::max(kLeast, static_cast<size_t>(std::min(torchs / 11, kMost)));
    // Sets how many rows of logits the working memory holds, and what follows from that.
    const auto fits = [&](int64_t hold, bool all_at_once) {
      hold_ = hold;
      first_chunk_ = all_at_once ? tokens() : region_ + hold;
      later_chunk_ = all_at_once ? tokens() : wide_ ? region_ + hold : hold;
      return carve(Carver(), 2) <= budget;
    };
    const int64_t row = a_.features * static_cast<int64_t>(sizeof(Out));
    if (wants_weight())
      region_ = kBlockClasses * row / kept_bytes<Kept>(kBlockClasses) / kPanelRows * kPanelRows;
    const int64_t last = block_classes(blocks() - 1);
    last_fits_ = region_ * kept_bytes<Kept>(last) <= last * row;
    bool all_at_once = false;
    if (wants_weight() && !std::is_same_v<Out, A>) {
      // The sum over chunks of rows needs float32: in working memory if that can be afforded, else
      // all rows are one chunk.
      wide_ = tokens() > region_;
      wide_ = wide_ && fits(kMinimumRows, false);
      all_at_once = !wide_;
    }
    int64_t low = all_at_once ? 0 : kMinimumRows / kPanelRows;
    int64_t high = std::max(low, (tokens() + kPanelRows - 1) / kPanelRows);
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (fits(middle * kPanelRows, all_at_once))
        low = middle;
      else
        high = middle - 1;
    }
    fits(low * kPanelRows, all_at_once);
  }

  // Sizes the working memory, and with a base hands it out.
  size_t carve(Carver memory, int64_t threads) {
    const int64_t rows =
        round_up(std::min(std::max(first_chunk_, later_chunk_), tokens()), kPanelRows);
    const int64_t beyond = std::min(rows, std::max<int64_t>(0, tokens() - region_));
    const int64_t panel = kBlockClasses * std::max(depth_, width_);
    for (E*& p : weight_panels_) p = memory.take<E>(panel);
    input_across_ = memory.take<E>(rows * depth_);
    stats_ = memory.take<BlockStats<A>>(blocks() * rows);
    best_ = memory.take<int32_t>(a_.argmax ? blocks() * rows : 0);
    spread_ = memory.take<double>(a_.label_smoothing > 0 ? blocks() * rows : 0);
    row_ = memory.take<Row<A>>(rows);
    stride_ = rows;
    if (wants_gradient()) {
      input_along_ = memory.take<E>(wants_weight() ? rows / M::kPack * width_ : 0);
      grad_input_ = memory.take<A>(wants_input() ? rows * width_ : 0);
      grad_along_ =
          memory.take<E>(wants_weight() || wants_bias() ? rows / M::kPack * kBlockClasses : 0);
      hold_block_ = std::min(beyond, hold_) * kept_bytes<Kept>(kBlockClasses);
      held_ = memory.take<char>(blocks() * hold_block_);
      last_ = memory.take<char>(last_fits_ ? 0 : rows * kept_bytes<Kept>(kBlockClasses));
      wide_gradient_ = memory.take<A>(wide_ ? a_.classes * width_ : 0);
    }
    areas_.resize(static_cast<size_t>(threads));
    for (Area& area : areas_) {
      area.logits = memory.take<A>(kItemRows * kBlockClasses);
      if (!wants_gradient()) continue;
      area.narrow = memory.take<Grad>(M::kPack == 2 ? kItemRows * kBlockClasses : 0);
      area.across = memory.take<E>(wants_input() ? kItemRows * kBlockClasses / M::kPack : 0);
      area.product = memory.take<A>(wants_weight() ? kItemClasses * width_ : 0);
    }
    return memory.used();
  }

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
        for (int64_t i = next++; i < items; i = next++) f(i, areas_[static_cast<size_t>(begin)]);
    });
  }

  // --- the sweeps -----------------------------------------------------------------------------

  void chunk() {
    pack_input();
    const int64_t items = row_items();
    const int64_t packs = panels(kBlockClasses);
    parallel(packs, [&](int64_t i, Area&) { pack_across(0, i, weight_panels_[0]); });
    for (int64_t b = 0; b < blocks(); ++b)
      parallel(items + (b + 1 < blocks() ? packs : 0), [&](int64_t i, Area& area) {
        if (i < items)
          first_sweep(b, i, weight_panels_[b % 2], area);
        else
          pack_across(b + 1, i - items, weight_panels_[(b + 1) % 2]);
      });
    parallel_ranges(rows_, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) finish_row(r);
    });
    if (!wants_gradient()) return;

    const int64_t across = kept_rows_ < rows_ ? packs : 0;
    const int64_t along = wants_input() ? kBlockClasses / kPackRows : 0;
    const auto pack = [&](int64_t b, int64_t i) {
      if (i < across)
        pack_across(b, i, weight_panels_[0]);
      else
        pack_along(b, i - across, weight_panels_[1]);
    };
    parallel(across + along, [&](int64_t i, Area&) { pack(0, i); });
    for (int64_t b = 0; b < blocks(); ++b) {
      // Rows without kept logits are the last, and take longest: they go first.
      parallel(items, [&](int64_t i, Area& area) { second_sweep(b, items - 1 - i, area); });
      const int64_t sums = weight_items(b);
      parallel(sums + (b + 1 < blocks() ? across + along : 0), [&](int64_t i, Area& area) {
        if (i < sums)
          weight_gradient(b, i, area);
        else
          pack(b + 1, i - sums);
      });
    }
    if (wants_input()) write_input_gradient();
  }

  int64_t block_classes(int64_t b) const {
    return std::min(kBlockClasses, a_.classes - b * kBlockClasses);
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
                        input_across_ + r0 * depth_ + e / M::kPack * kPanelRows, kPanelRows);
        if (!wants_weight()) continue;
        for_panels<M>(round_lanes<M>(n), [&](int64_t c, int64_t width) {
          panel_along<M>(gathered + c, piece, rows, n - c,
                         input_along_ + (e + c) * chunk_steps + r0 / M::kPack * width, width);
        });
      }
    });
  }

  const T* weight_row(int64_t c) const {
    return static_cast<const T*>(a_.linear_weight) + c * a_.linear_weight_stride;
  }

  // Panel i of a block of the weight, for the logits.
  void pack_across(int64_t b, int64_t i, E* packed) {
    const int64_t n = block_classes(b), c = i * kPanelVecs * kLanes<A>;
    if (c >= n) return;
    const int64_t width = std::min(round_lanes<M>(n) - c, int64_t{kPanelVecs} * kLanes<A>);
    panel_across<M>(weight_row(b * kBlockClasses + c), a_.linear_weight_stride,
                    std::min(n - c, width), a_.features, packed + c * depth_, width);
  }

  // Rows [kPackRows * i, kPackRows * (i + 1)) of a block of the weight, for the input's gradient.
  void pack_along(int64_t b, int64_t i, E* packed) {
    const int64_t n = block_classes(b), c = i * kPackRows;
    if (c >= n) return;
    for_panels<M>(width_, [&](int64_t e, int64_t width) {
      panel_along<M>(weight_row(b * kBlockClasses + c) + e, a_.linear_weight_stride,
                     std::min(kPackRows, n - c), a_.features - e,
                     packed + e * steps<M>(n) + c / M::kPack * width, width);
    });
  }

  // logits = those of rows [r0, r0 + m) and block b, padded to the lanes.
  void make_logits(int64_t b, int64_t r0, int64_t m, const E* packed, A* logits) {
    const int64_t n = block_classes(b);
    const A* bias = static_cast<const A*>(a_.linear_bias);
    if (depth_ == 0) std::fill(logits, logits + m * kBlockClasses, A(0));
    multiply<M>(round_up(m, kBlockRows), round_lanes<M>(n), depth_, input_across_ + r0 * depth_,
                packed, logits, kBlockClasses, false);
    if (bias == nullptr && a_.softcap == 0) return;
    for (int64_t i = 0; i < m; ++i)
      finish_logits(logits + i * kBlockClasses, n, bias ? bias + b * kBlockClasses : bias,
                    a_.softcap);
  }

  // Where the logits of a kept row of the chunk are.
  char* kept_logits(int64_t b, int64_t r) {
    const int64_t bytes = kept_bytes<Kept>(block_classes(b));
    if (r >= in_region_) return held_ + b * hold_block_ + (r - in_region_) * bytes;
    if (b + 1 == blocks() && !last_fits_) return last_ + r * bytes;
    auto* gradient = static_cast<Out*>(a_.grad_linear_weight) + b * kBlockClasses * a_.features;
    return reinterpret_cast<char*>(gradient) + r * bytes;
  }

  void first_sweep(int64_t b, int64_t item, const E* packed, Area& area) {
    const int64_t r0 = item * item_rows_, m = std::min(item_rows_, rows_ - r0);
    const int64_t first = b * kBlockClasses, n = block_classes(b);
    A u[kBlockClasses + kLanes<A>];
    const bool spread = a_.label_smoothing > 0;
    const double each = a_.label_smoothing / static_cast<double>(a_.classes);
    if (spread)
      spread_target<A>(nullptr, options_.weight ? options_.weight + first : nullptr, n, 0, each, 1,
                       u);
    make_logits(b, r0, m, packed, area.logits);
    for (int64_t i = 0; i < m; ++i) {
      const A* z = area.logits + i * kBlockClasses;
      const int64_t r = r0 + i, at = b * stride_ + r;
      const int64_t y = label(r) - first;
      const BlockStats<A> s = stats_[at] = block_stats(z, n);
      if (y >= 0 && y < n) row_[r].z_label = z[y];
      if (a_.argmax) best_[at] = static_cast<int32_t>(row_argmax(z, n));
      if (spread) {
        double weights = 0, weighted = 0;
        block_weighted_sums(z, u, n, s.reference, &weights, &weighted);
        spread_[at] = weighted + weights * s.reference;
      }
      if (wants_gradient() && r < kept_rows_)
        keep_block(Kept(), z, n, s.reference, kept_logits(b, r));
    }
  }

  int64_t token(int64_t r) const { return kept_[static_cast<size_t>(first_ + r)]; }
  int64_t label(int64_t r) const { return a_.target[token(r)]; }

  // What the blocks of a row come to: loss, statistics, and how to make its gradient.
  void finish_row(int64_t r) {
    const int64_t n = token(r);
    double top = -kInfinity, sum = 0, spread_z = 0, special = 0;
    for (int64_t b = 0; b < blocks(); ++b) {
      const BlockStats<A>& s = stats_[b * stride_ + r];
      if (s.sum > 0 && s.reference > top) top = s.reference;
      if (!std::isfinite(s.sum)) special += s.sum;  // NaN and inf make NaN
      if (a_.label_smoothing > 0) spread_z += spread_[b * stride_ + r];
    }
    for (int64_t b = 0; b < blocks(); ++b) {
      const BlockStats<A>& s = stats_[b * stride_ + r];
      if (s.sum != 0) sum += s.sum * std::exp(s.reference - top);
    }
    if (special != 0) top = sum = kNan;
    const double log_sum = std::log(sum);
    const double lse = special != 0 ? special : sum == 0 ? -kInfinity : top + log_sum;

    Row<A>& row = row_[r];
    const double e = a_.label_smoothing, each = e / static_cast<double>(a_.classes);
    const double w = options_.weight ? options_.weight[label(r)] : 1;
    losses_[n] = (1 - e) * w * (log_sum - (row.z_label - top));
    if (e > 0) losses_[n] += each * options_.weight_sum * (top + log_sum) - spread_z;
    z_losses_[n] = a_.z_loss != 0 ? a_.z_loss * lse * lse : 0;
    static_cast<A*>(a_.lse)[n] = static_cast<A>(lse);
    if (a_.argmax) a_.argmax[n] = argmax(r);

    double g = 1;
    if (a_.grad_loss)
      g = static_cast<const A*>(a_.grad_loss)[a_.reduction == Reduction::none ? n : 0];
    const double g_z = a_.z_loss != 0 ? g / z_denominator_ : 0;
    g /= denominator_;
    double scale = g * ((1 - e) * w + each * options_.weight_sum);
    if (g_z != 0) scale += g_z * 2 * a_.z_loss * lse;
    const double z = row.z_label;
    double at_label = std::exp(z - top) / sum * scale - g * w * (1 - e + each);
    if (a_.softcap != 0) at_label *= 1 - (z / a_.softcap) * (z / a_.softcap);
    row.shift = static_cast<A>(top);
    row.scale = static_cast<A>(scale / sum);
    row.flat = static_cast<A>(g * each);
    row.at_label = static_cast<A>(at_label);
  }

  // The first class with the largest logit, or with a NaN.
  int64_t argmax(int64_t r) const {
    int64_t best = 0;
    double largest = -kInfinity;
    for (int64_t b = 0; b < blocks(); ++b) {
      const BlockStats<A>& s = stats_[b * stride_ + r];
      const bool nan = std::isnan(s.sum);
      if (!nan && (s.sum == 0 || s.reference <= largest)) continue;
      largest = s.reference;
      best = b * kBlockClasses + best_[b * stride_ + r];
      if (nan) break;
    }
    return best;
  }

  void second_sweep(int64_t b, int64_t item, Area& area) {
    const int64_t r0 = item * item_rows_, m = std::min(item_rows_, rows_ - r0);
    const int64_t first = b * kBlockClasses, n = block_classes(b), kk = steps<M>(n);
    const int64_t kept = std::max<int64_t>(0, std::min(m, kept_rows_ - r0));
    if (kept < m)
      make_logits(b, r0 + kept, m - kept, weight_panels_[0], area.logits + kept * kBlockClasses);
    for (int64_t i = 0; i < m; ++i) {
      A* z = area.logits + i * kBlockClasses;
      const int64_t r = r0 + i, y = label(r) - first;
      if (i < kept)
        recall_block(Kept(), kept_logits(b, r), n, stats_[b * stride_ + r].reference, z);
      block_gradient(options_, row_[r], first, n, z);
      if (y >= 0 && y < n) z[y] = row_[r].at_label;
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
    if (wants_weight() || wants_bias())
      for (int64_t c = 0; c < n; c += kPanelRows)
        panel_along<M>(grad + c, kBlockClasses, m, n - c,
                       grad_along_ + c * steps<M>(rows_) + r0 / M::kPack * kPanelRows, kPanelRows);
    if (!wants_input()) return;
    for (int64_t i = 0; i < m; i += kPanelRows)
      panel_across<M>(grad + i * kBlockClasses, kBlockClasses, std::min(kPanelRows, m - i), n,
                      area.across + i * kk, kPanelRows);
    multiply<M>(round_up(m, kBlockRows), width_, kk, area.across, weight_panels_[1],
                grad_input_ + r0 * width_, width_, b > 0);
  }

  int64_t weight_items(int64_t b) {
    if (!wants_weight() && !wants_bias()) return 0;
    item_classes_ = std::min(kItemClasses, round_up(kBlockClasses / threads_, 3 * kPanelRows));
    return (block_classes(b) + item_classes_ - 1) / item_classes_;
  }

  // Some classes of a block: the sum over the rows of the chunk.
  void weight_gradient(int64_t b, int64_t item, Area& area) {
    const int64_t c0 = item * item_classes_, m = std::min(item_classes_, block_classes(b) - c0);
    const int64_t first = b * kBlockClasses + c0, kk = steps<M>(rows_);
    const E* grad = grad_along_ + c0 * kk;
    if (wants_bias()) {
      A* out = static_cast<A*>(a_.grad_linear_bias) + first;
      for (int64_t c = 0; c < m; c += kPanelRows) {
        double sum[kPanelRows];
        panel_sums<M>(grad + c * kk, kk, sum);
        for (int64_t i = 0; i < std::min(kPanelRows, m - c); ++i)
          out[c + i] = static_cast<A>(sum[i] + (first_ > 0 ? out[c + i] : 0));
      }
    }
    if (!wants_weight()) return;
    multiply<M>(round_up(m, kBlockRows), width_, kk, grad, input_along_, area.product, width_,
                false);
    for (int64_t i = 0; i < m; ++i) {
      const A* from = area.product + i * width_;
      if (wide_)
        add_row(from, wide_gradient_ + (first + i) * width_);
      else
        add_row(from, static_cast<Out*>(a_.grad_linear_weight) + (first + i) * a_.features);
    }
  }

  // One row of E numbers, added unless this is the first chunk. `from` is padded to whole vectors.
  template <class To>
  void add_row(const A* from, To* to) const {
    const bool add = first_ > 0;
    for_vectors(from, a_.features, A(0), [&](vec<A> v, int64_t c) {
      const int64_t left = a_.features - c;
      if (left >= kLanes<A>)
        store_acc(to + c, add ? v + load_acc(to + c) : v);
      else
        store_acc_n(to + c, add ? v + load_acc_n(to + c, left, A(0)) : v, left);
    });
  }

  template <class To>
  void copy_row(const A* from, To* to) const {
    for_vectors(from, a_.features, A(0), [&](vec<A> v, int64_t c) {
      if (a_.features - c >= kLanes<A>)
        store_acc(to + c, v);
      else
        store_acc_n(to + c, v, a_.features - c);
    });
  }

  void write_input_gradient() {
    parallel_ranges(rows_, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        copy_row(grad_input_ + r * width_,
                 static_cast<Out*>(a_.grad_input) + token(r) * a_.features);
    });
  }

  // --- what the sweeps leave to be done ---------------------------------------------------------

  void clear_ignored() {
    for (int64_t n = 0; n < a_.tokens; ++n) {
      if (a_.target[n] != a_.ignore_index) continue;
      static_cast<A*>(a_.lse)[n] = 0;
      if (a_.argmax) a_.argmax[n] = -1;
      if (wants_input())
        std::memset(static_cast<Out*>(a_.grad_input) + n * a_.features, 0,
                    static_cast<size_t>(a_.features) * sizeof(Out));
    }
  }

  void finish_weight_gradient() {
    Out* out = static_cast<Out*>(a_.grad_linear_weight);
    if (wide_) {
      parallel_ranges(a_.classes, 64, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c)
          copy_row(wide_gradient_ + c * width_, out + c * a_.features);
      });
      return;
    }
    if (wants_weight())
      std::memset(out, 0, static_cast<size_t>(a_.classes * a_.features) * sizeof(Out));
    if (wants_bias())
      std::memset(a_.grad_linear_bias, 0, static_cast<size_t>(a_.classes) * sizeof(A));
  }

  void reduce() const {
    A* loss = static_cast<A*>(a_.loss);
    A* z_loss = static_cast<A*>(a_.z_loss_out);
    if (a_.reduction == Reduction::none) {
      for (int64_t n = 0; n < a_.tokens; ++n) {
        loss[n] = static_cast<A>(losses_[n] + z_losses_[n]);
        z_loss[n] = static_cast<A>(z_losses_[n]);
      }
      return;
    }
    const auto total = [&](const std::vector<double>& of) {
      return pairwise_sum(0, tokens(), [&](int64_t i) { return of[size_t(kept_[size_t(i)])]; });
    };
    const double sum = total(losses_), z_sum = total(z_losses_) / z_denominator_;
    *loss = static_cast<A>(sum / denominator_ + (a_.z_loss != 0 ? z_sum : 0));
    *z_loss = static_cast<A>(z_sum);
  }

  const LinearCrossEntropyArgs& a_;
  RowOptions<A> options_{};
  std::vector<int64_t> kept_;  // tokens whose target is not ignored
  std::vector<double> losses_, z_losses_;
  double denominator_ = 1, z_denominator_ = 1;

  // The plan.
  int64_t depth_, width_;                      // E in steps, and padded to the lanes
  int64_t first_chunk_ = 0, later_chunk_ = 0;  // rows
  int64_t region_ = 0, hold_ = 0;  // rows whose logits fit the weight gradient, working memory
  int64_t hold_block_ = 0;         // bytes that the working memory keeps of a block
  bool last_fits_ = true;  // whether the last block's gradient has room for region_ rows of logits
  bool wide_ = false;      // the weight gradient is summed in working memory

  // The chunk at work: rows [first_, first_ + rows_) of kept_.
  int64_t first_ = 0, rows_ = 0, kept_rows_ = 0, in_region_ = 0;
  int64_t item_rows_ = 0, item_classes_ = 0;

  // Working memory.
  int64_t threads_ = 1, stride_ = 0;
  E* weight_panels_[2];  // of a block, for the logits; the second also for the input's gradient
  E *input_across_, *input_along_ = nullptr;
  E* grad_along_ = nullptr;  // the gradient of the block's logits
  A *grad_input_ = nullptr, *wide_gradient_ = nullptr;
  char *held_ = nullptr, *last_ = nullptr;  // kept logits; those of the last block
  BlockStats<A>* stats_;                    // (blocks, rows), as the next two
  int32_t* best_;
  double* spread_;
  Row<A>* row_;
  std::vector<Area> areas_;
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
