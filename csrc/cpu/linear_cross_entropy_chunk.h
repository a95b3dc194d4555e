// The chunk of rows that a linear cross-entropy works on: its packed operands, its logits, and
// where logits are kept between the two sweeps.
#pragma once

#include <algorithm>

#include "cpu/linear_cross_entropy_loss.h"
#include "cpu/linear_cross_entropy_plan.h"
#include "cpu/matmul/matmul.h"
#include "cpu/parallel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kPackRows = 16;  // rows of the weight that are packed together
constexpr double kMinParallelProducts = 1e6;

// M: element types of the products; T: type of input and weight.
template <class M, class T>
struct Chunk {
  using A = typename M::acc;
  using E = typename M::elem;
  using Out = typename Plan<M, T>::Out;
  using Kept = typename Plan<M, T>::Kept;
  using ThreadBuffers = typename Plan<M, T>::ThreadBuffers;

  const LinearCrossEntropyArgs& a;
  Losses<A> losses;
  Plan<M, T> plan;
  int64_t threads = 1;

  // Rows [first, first + rows) of the tokens that are not ignored. Logits of the first kept_rows
  // are kept between the sweeps; those of the first region_rows, in the weight gradient's memory.
  int64_t first = 0, rows = 0, kept_rows = 0, region_rows = 0;
  int64_t item_rows = 0;  // of a work item

  explicit Chunk(const LinearCrossEntropyArgs& args) : a(args), losses(args), plan(args) {
    plan.make(tokens());
    const double products = static_cast<double>(tokens()) * a.classes * a.features;
    threads = products > kMinParallelProducts ? num_threads() : 1;
  }

  // Tokens that are not ignored.
  int64_t tokens() const { return static_cast<int64_t>(losses.kept.size()); }

  // Makes this the chunk that begins with row `begin`.
  void start(int64_t begin) {
    first = begin;
    rows = min(first == 0 ? plan.first_chunk : plan.later_chunk, tokens() - first);
    const int64_t region = first == 0 || plan.wide ? plan.region : 0;
    kept_rows = min(rows, plan.hold + region);
    region_rows = min(kept_rows, region);
  }

  int64_t token(int64_t r) const { return losses.kept[static_cast<size_t>(first + r)]; }
  int64_t label(int64_t r) const { return a.target[token(r)]; }

  // f(item, a thread's buffers) for all items, on all threads.
  template <class F>
  void parallel(int64_t items, F&& f) {
    const int64_t workers = min(threads, items);
    std::atomic<int64_t> next{0};
    parallel_ranges(workers, 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin)
        for (int64_t i = next++; i < items; i = next++)
          f(i, plan.buffers[static_cast<size_t>(begin)]);
    });
  }

  // Chooses the rows per work item such that all threads have equal work; returns the items.
  int64_t row_items() {
    int64_t shortest = rows * threads + kItemRows;
    for (int64_t size = kItemRows; size >= kPanelRows; size -= kPanelRows) {
      const int64_t items = ceil_div(rows, size);
      const int64_t longest = ceil_div(items, threads) * size;  // rows of a thread
      if (longest >= shortest) continue;
      shortest = longest;
      item_rows = size;
    }
    return ceil_div(rows, item_rows);
  }

  // --- packing --------------------------------------------------------------------------------

  // The rows of the chunk, gathered in small groups of which panels are made.
  void pack_input() {
    const int64_t chunk_steps = steps<M>(rows);
    parallel(ceil_div(rows, kPanelRows), [&](int64_t group, ThreadBuffers& own) {
      const int64_t r0 = group * kPanelRows, n_rows = min(kPanelRows, rows - r0);
      T* gathered = reinterpret_cast<T*>(own.logits);
      const int64_t piece = kItemRows * kBlockClasses / kPanelRows;  // a multiple of every panel
      for (int64_t e = 0; e < a.features; e += piece) {
        const int64_t n = min(piece, a.features - e);
        for (int64_t r = 0; r < n_rows; ++r)
          std::memcpy(static_cast<void*>(gathered + r * piece), input_row(r0 + r) + e,
                      static_cast<size_t>(n) * sizeof(T));
        pack_panel_transposed<M>(
            gathered, piece, n_rows, n,
            plan.input_transposed + r0 * plan.depth + e / M::kPack * kPanelRows, kPanelRows);
        if (!plan.wants_weight()) continue;
        for_panels<M, LargePanels>(round_lanes<M>(n), [&](int64_t c, int64_t width) {
          pack_panel_along<M>(gathered + c, piece, n_rows, n - c,
                              plan.input_along + (e + c) * chunk_steps + r0 / M::kPack * width,
                              width);
        });
      }
    });
  }

  // Panels of a whole block of the weight.
  static constexpr int64_t kPanelClasses = LargePanels::kVecs * kLanes<A>;
  static constexpr int64_t kBlockPanelCount = ceil_div(kBlockClasses, kPanelClasses);

  // Panel i of a block of the weight, for the logits.
  void pack_weight_transposed(int64_t b, int64_t i, E* packed) {
    const int64_t n = plan.block_classes(b), c = i * kPanelClasses;
    if (c >= n) return;
    pack_panel_transposed<M>(weight_row(b * kBlockClasses + c), a.linear_weight_stride,
                             min(n - c, kPanelClasses), a.features, packed + c * plan.depth,
                             min(round_lanes<M>(n) - c, kPanelClasses));
  }

  // Rows [kPackRows * i, kPackRows * (i + 1)) of a block of the weight, for the input's gradient.
  void pack_weight_along(int64_t b, int64_t i, E* packed) {
    const int64_t n = plan.block_classes(b), c = i * kPackRows;
    if (c >= n) return;
    for_panels<M, LargePanels>(plan.width, [&](int64_t e, int64_t width) {
      pack_panel_along<M>(weight_row(b * kBlockClasses + c) + e, a.linear_weight_stride,
                          min(kPackRows, n - c), a.features - e,
                          packed + e * steps<M>(n) + c / M::kPack * width, width);
    });
  }

  // --- logits ---------------------------------------------------------------------------------

  // logits = those of rows [r0, r0 + m) and block b without softcap, padded to the lanes.
  void make_logits(int64_t b, int64_t r0, int64_t m, const E* packed, A* logits, E* scratch) {
    const int64_t n = plan.block_classes(b);
    const A* bias = static_cast<const A*>(a.linear_bias);
    if (plan.depth == 0) std::fill(logits, logits + m * kBlockClasses, A(0));
    multiply_large<M>(round_up(m, kLargeTileRows), round_lanes<M>(n), plan.depth,
                      plan.input_transposed + r0 * plan.depth, packed, logits, kBlockClasses, false,
                      scratch);
    for (int64_t i = 0; i < m && bias != nullptr; ++i)
      add_bias(logits + i * kBlockClasses, n, bias + b * kBlockClasses);
  }

  // The location of the logits of a kept row.
  char* kept_logits(int64_t b, int64_t r) {
    const int64_t bytes = kept_bytes<Kept>(plan.block_classes(b));
    if (r >= region_rows) return plan.held + b * plan.hold_block + (r - region_rows) * bytes;
    if (b + 1 == plan.blocks() && !plan.last_fits) return plan.last + r * bytes;
    auto* gradient = static_cast<Out*>(a.grad_linear_weight) + b * kBlockClasses * a.features;
    return reinterpret_cast<char*>(gradient) + r * bytes;
  }

 private:
  const T* input_row(int64_t r) const {
    return static_cast<const T*>(a.input) + token(r) * a.input_stride;
  }
  const T* weight_row(int64_t c) const {
    return static_cast<const T*>(a.linear_weight) + c * a.linear_weight_stride;
  }
};

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
