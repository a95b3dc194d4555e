// How a linear cross-entropy is divided into chunks of rows, and its working memory.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/linear_cross_entropy.h"
#include "cpu/linear_cross_entropy_block.h"
#include "cpu/matmul/matmul.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kItemRows = 192;      // rows of logits in a work item
constexpr int64_t kItemClasses = 240;   // rows of the weight gradient in a work item
constexpr int64_t kMinChunkRows = 256;  // with fewer, reading the weight dominates

// M: mode of the products; T: type of input and weight.
template <class M, class T>
struct Plan {
  using A = typename M::acc;
  using E = typename M::elem;
  using Out = std::conditional_t<std::is_same_v<T, f16>, float, T>;
  using Kept = std::conditional_t<std::is_same_v<T, bf16>, Code12, A>;
  using Grad = std::conditional_t<(M::kPack > 1), bf16, A>;  // of the logits, as it is multiplied

  struct ThreadBuffers {
    A* logits = nullptr;           // of a work item; then their gradient
    Grad* grad = nullptr;          // the gradient as bfloat16
    E* grad_transposed = nullptr;  // packed: A of the input gradient
    A* product = nullptr;          // rows of the weight gradient
    E* multiply_scratch = nullptr;
  };

  explicit Plan(const LinearCrossEntropyArgs& args) : a(args) {}

  bool wants_gradient() const { return wants_input() || wants_weight() || wants_bias(); }
  bool wants_input() const { return a.grad_input != nullptr; }
  bool wants_weight() const { return a.grad_linear_weight != nullptr; }
  bool wants_bias() const { return a.grad_linear_bias != nullptr; }

  int64_t blocks() const { return ceil_div(a.classes, kBlockClasses); }
  int64_t block_classes(int64_t b) const {
    return min(kBlockClasses, a.classes - b * kBlockClasses);
  }

  // Working memory stays below a tenth of what torch needs for logits, log-probabilities and their
  // gradient. The number of threads must not be used here: results depend on the plan.
  void make(int64_t kept_tokens) {
    tokens = kept_tokens;
    depth = steps<M>(a.features);
    width = round_lanes<M>(a.features);
    const double torchs = 3.0 * a.tokens * a.classes * sizeof(T);
    const size_t budget = std::max(
        kMinBudget, static_cast<size_t>(std::min(torchs / 11, static_cast<double>(kMaxBudget))));
    // Sets the number of rows of logits in working memory, and the fields that depend on it.
    const auto fits = [&](int64_t rows, bool all_at_once) {
      hold = rows;
      first_chunk = all_at_once ? tokens : region + hold;
      later_chunk = all_at_once ? tokens : wide ? region + hold : hold;
      return carve(Carver(), 2) <= budget;
    };
    const int64_t row_bytes = a.features * static_cast<int64_t>(sizeof(Out));
    if (wants_weight())
      region =
          kBlockClasses * row_bytes / kept_bytes<Kept>(kBlockClasses) / kPanelRows * kPanelRows;
    const int64_t last_classes = block_classes(blocks() - 1);
    last_fits = region * kept_bytes<Kept>(last_classes) <= last_classes * row_bytes;
    bool all_at_once = false;
    if (wants_weight() && !std::is_same_v<Out, A>) {
      // The sum over chunks of rows needs float32: in working memory if the budget allows, else all
      // rows are one chunk.
      wide = tokens > region;  // read by `fits`
      wide = wide && fits(kMinChunkRows, false);
      all_at_once = !wide;
    }
    int64_t low = all_at_once ? 0 : kMinChunkRows / kPanelRows;
    int64_t high = max(low, ceil_div(tokens, kPanelRows));
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (fits(middle * kPanelRows, all_at_once))
        low = middle;
      else
        high = middle - 1;
    }
    fits(low * kPanelRows, all_at_once);
  }

  // Measures the working memory; with a base, hands it out.
  size_t carve(Carver memory, int64_t threads) {
    const int64_t rows = round_up(min(max(first_chunk, later_chunk), tokens), kPanelRows);
    const int64_t beyond = min(rows, max(0, tokens - region));
    const int64_t panel = kBlockClasses * max(depth, width);
    for (E*& p : weight_panels) p = memory.take<E>(panel);
    input_transposed = memory.take<E>(rows * depth);
    stats = memory.take<BlockStats<A>>(blocks() * rows);
    argmax = memory.take<BlockArgmax<A>>(a.argmax ? blocks() * rows : 0);
    spread = memory.take<double>(a.label_smoothing > 0 ? blocks() * rows : 0);
    row_gradients = memory.take<RowGradient<A>>(rows);
    stride = rows;
    if (wants_gradient()) {
      input_along = memory.take<E>(wants_weight() ? rows / M::kPack * width : 0);
      grad_input = memory.take<A>(wants_input() ? rows * width : 0);
      grad_along =
          memory.take<E>(wants_weight() || wants_bias() ? rows / M::kPack * kBlockClasses : 0);
      hold_block = min(beyond, hold) * kept_bytes<Kept>(kBlockClasses);
      held = memory.take<char>(blocks() * hold_block);
      last = memory.take<char>(last_fits ? 0 : rows * kept_bytes<Kept>(kBlockClasses));
      wide_gradient = memory.take<A>(wide ? a.classes * width : 0);
    }
    buffers.resize(static_cast<size_t>(threads));
    for (ThreadBuffers& own : buffers) {
      own.logits = memory.take<A>(kItemRows * kBlockClasses);
      own.multiply_scratch = memory.take<E>(multiply_large_scratch<M>());
      if (!wants_gradient()) continue;
      own.grad = memory.take<Grad>(M::kPack > 1 ? kItemRows * kBlockClasses : 0);
      own.grad_transposed =
          memory.take<E>(wants_input() ? kItemRows * kBlockClasses / M::kPack : 0);
      own.product = memory.take<A>(wants_weight() ? kItemClasses * width : 0);
    }
    return memory.used();
  }

  // The plan.
  int64_t depth, width;                      // E in steps, and padded to the lanes
  int64_t first_chunk = 0, later_chunk = 0;  // rows
  int64_t region = 0, hold = 0;  // rows whose logits fit the weight gradient, working memory
  int64_t hold_block = 0;        // bytes that the working memory keeps of a block
  bool last_fits = true;  // whether the last block's gradient has room for region rows of logits
  bool wide = false;      // whether the weight gradient is summed in working memory

  // Working memory.
  int64_t stride = 0;   // rows of the largest chunk
  E* weight_panels[2];  // of a block, for the logits; the second also for the input's gradient
  E *input_transposed, *input_along = nullptr;
  E* grad_along = nullptr;  // the gradient of the block's logits
  A *grad_input = nullptr, *wide_gradient = nullptr;
  char *held = nullptr, *last = nullptr;  // kept logits; those of the last block
  BlockStats<A>* stats;                   // (blocks, rows), as the next two
  BlockArgmax<A>* argmax;
  double* spread;
  RowGradient<A>* row_gradients;
  std::vector<ThreadBuffers> buffers;

  const LinearCrossEntropyArgs& a;
  int64_t tokens = 0;  // that are not ignored
};

}  // namespace
}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
