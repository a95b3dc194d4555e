// Softmax cross-entropy: the kernels and their launches.
//
// Forward: one pass over each row. In place, where loss and gradient are computed together, a row
// stays in the shared memory of a block or of a cluster of blocks between its only read and its
// only write. Where it does not fit, the forward pass is followed by the backward kernel, which
// computes the gradient from the log-sum-exp.
//
// A target out of range gets a NaN loss and gradient: to raise an error the host would have to wait
// for the GPU. No memory outside the tensors is read or written for it.
#include "cuda/cross_entropy.h"
#include "cuda/cross_entropy_plan.h"
#include "cuda/cross_entropy_row.h"

namespace llama_fast {
namespace cuda {
namespace {

constexpr int kReduceThreads = 1024;

// --- kernels ---------------------------------------------------------------------------------

// Sums of the chunks [begin, end) of a row. Several loads are in flight at once.
template <class T, int W, bool kGeneral>
LF_DEVICE RowSums sweep_chunks(const CrossEntropyArgs& a, const RowFacts& facts, int64_t begin,
                               int64_t end) {
  constexpr int kAhead = 4;
  const LogitRow<T, W> row(a, a.logits, facts.row);
  if (end > row.chunks()) end = row.chunks();
  RowSums s = no_sums();
  for (int64_t c = begin + thread(); c < end; c += kAhead * threads()) {
    Chunk chunks[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (c + i * threads() < end)
        chunks[i] = row.load(row.first_of(static_cast<int>(c + i * threads())));
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (c + i * threads() >= end) continue;
      float x[W];
      numbers_of<T, W>(chunks[i], x);
      add<T, kGeneral, W>(a, facts, row, row.first_of(static_cast<int>(c + i * threads())), x, s);
    }
  }
  return s;
}

LF_DEVICE float label_logit(const CrossEntropyArgs& a, const RowFacts& facts) {
  if (facts.index < 0 || !facts.good) return 0;
  float label[1];
  load_numbers(a.logits.data, a.logits.dtype,
               row_start(a, a.logits, facts.row) + facts.index * a.logits.strides[2], label);
  return label[0];
}

// The blocks of a row are those of a cluster, or blocks_y() blocks that write their sums to
// `parts`.
template <class T, int W, bool kGeneral>
LF_KERNEL(kMaxThreads)
forward(CrossEntropyArgs a, int64_t share, RowSums* parts) {
  const RowFacts facts(a, block_x() / cluster_size());
  const int64_t part = cluster_rank() + block_y();
  RowSums s = no_sums();
  if (facts.kept || a.argmax)
    s = sweep_chunks<T, W, kGeneral>(a, facts, part * share, (part + 1) * share);
  s = block_sums<kGeneral>(s);
  if (thread() == 0) {
    if (parts) {
      parts[facts.row * blocks_y() + block_y()] = s;
    } else if (cluster_rank() == 0) {
      finish(a, facts, s, label_logit(a, facts));
    }
  }
  if (cluster_size() > 1) sync_cluster();  // others read this block's sums
}

// A warp combines the parts of a row.
LF_KERNEL(32) combine(CrossEntropyArgs a, const RowSums* parts, int splits) {
  const RowFacts facts(a, block_x());
  RowSums s = no_sums();
  for (int i = 0; i < splits; i += 32) {
    RowSums more = i + lane() < splits ? parts[facts.row * splits + i + lane()] : no_sums();
    more = warp_sums<true>(more);
    if (lane() == 1) s = more;
    s = warp_sums<true>(lane() < 2 ? s : no_sums());
  }
  if (lane() == 0) finish(a, facts, s, label_logit(a, facts));
}

// Chunk c of those in shared memory.
template <class T, int W>
LF_DEVICE Chunk kept_chunk(const char* kept, int c) {
  if constexpr (W > 1) return load_chunk(kept + c * 16);
  Chunk chunk = {};
  memcpy(&chunk, reinterpret_cast<const T*>(kept) + c, sizeof(T));
  return chunk;
}
template <class T, int W>
LF_DEVICE void keep(char* kept, int c, const Chunk& chunk) {
  if constexpr (W > 1) {
    store_chunk(kept + c * 16, chunk);
  } else {
    memcpy(reinterpret_cast<T*>(kept) + c, &chunk, sizeof(T));
  }
}

// Loss and gradient of a row that stays in the shared memory of its cluster. Each thread reads only
// what it has copied there itself, so no barrier is needed.
template <class T, int W, bool kGeneral>
LF_KERNEL(kMaxThreads)
fused(CrossEntropyArgs a, int share) {
  const RowFacts facts(a, block_x() / cluster_size());
  const LogitRow<T, W> row(a, a.logits, facts.row);
  const int begin = cluster_rank() * share;
  const int count = row.chunks() - begin < share ? row.chunks() - begin : share;
  char* kept = shared_memory() + kRowScratch;
  const bool wanted = facts.graded() || a.argmax;
  const bool first = cluster_rank() == 0 && thread() == 0;
  const float label = first ? label_logit(a, facts) : 0;  // before it is overwritten
  RowSums s = no_sums();
  if (wanted) {
    for (int c = thread(); c < count; c += threads()) {
      const int at = row.first_of(begin + c);
      if (W > 1 && row.whole(at)) {
        copy_async(kept + c * 16, row.data + at);
      } else {
        keep<T, W>(kept, c, row.load(at));
      }
    }
    copy_async_commit();
    copy_async_wait<0>();
    for (int c = thread(); c < count; c += threads()) {
      float x[W];
      numbers_of<T, W>(kept_chunk<T, W>(kept, c), x);
      add<T, kGeneral, W>(a, facts, row, row.first_of(begin + c), x, s);
    }
  }
  s = block_sums<kGeneral>(s);
  if (first && a.lse) finish(a, facts, s, label);

  const float shift = shift_of(s.max);
  float factor = facts.at_label * facts.ce_scale;
  if (is_spread(a)) factor += s.target * facts.ce_scale;
  if (a.z_loss != 0) factor += 2.0f * a.z_loss * (shift + logf(s.sum)) * facts.z_scale;
  factor += facts.lse_scale;
  factor = facts.good ? factor / s.sum : static_cast<float>(NAN);
  const LogitRow<T, W> out(a, a.grad, facts.row);
  for (int c = thread(); c < count; c += threads()) {
    float x[W] = {};
    if (facts.graded()) {
      numbers_of<T, W>(kept_chunk<T, W>(kept, c), x);
      gradient<T, kGeneral, W>(a, facts, row, row.first_of(begin + c), x, shift, 0, factor);
    }
    out.store(out.first_of(begin + c), x);
  }
  if (cluster_size() > 1) sync_cluster();  // others read this block's sums
}

LF_DEVICE double block_sum(double value) {
  auto* sums = reinterpret_cast<double*>(shared_memory());
  value = warp_sum(value);
  sync_block();  // all threads have read the previous sums
  if (lane() == 0) sums[warp()] = value;
  sync_block();
  return warp_sum(lane() < threads() / 32 ? sums[lane()] : 0.0);
}

// The logarithm in a log-sum-exp above kMaxExactLse. Logits so large are equal or at least 64 apart
// in float32, so the sum of exponentials is the number of logits that equal the largest one. All
// threads call it.
template <class T, int W>
LF_DEVICE float log_of_max_count(const CrossEntropyArgs& a, const LogitRow<T, W>& row,
                                 float max_logit) {
  double count = 0;
  for (int c = thread(); c < row.chunks(); c += threads()) {
    float x[W] = {};
    numbers_of<T, W>(row.load(row.first_of(c)), x);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float z = a.softcap != 0 ? cap(x[j], a.softcap) : x[j];
      if (row.has(row.first_of(c) + j) && z == max_logit) count += 1;
    }
  }
  // In place, other blocks have overwritten parts of the row: NaN rather than a wrong gradient.
  return a.grad.data == a.logits.data ? static_cast<float>(NAN)
                                      : logf(static_cast<float>(block_sum(count)));
}

// The gradient of a part of a row. `targets`: the sum of u of each row, or null and then for class
// indices the same for all.
template <class T, int W, bool kGeneral>
LF_KERNEL(kMaxThreads)
backward(CrossEntropyArgs a, int64_t parts, const RowSums* sums, int splits) {
  const RowFacts facts(a, block_x() / parts);
  const LogitRow<T, W> row(a, a.logits, facts.row), out(a, a.grad, facts.row);
  const double lse = facts.graded() ? a.lse[facts.row] : 0;
  float factor = facts.at_label;
  if (sums) {
    for (int i = 0; i < splits; ++i) factor += sums[facts.row * splits + i].target;
  } else if (a.smoothing > 0) {
    factor += a.smoothing *
              (a.weight ? static_cast<float>(a.totals[2]) / static_cast<float>(a.classes) : 1.0f);
  }
  factor *= facts.ce_scale;
  if (a.z_loss != 0) factor += 2.0f * a.z_loss * static_cast<float>(lse) * facts.z_scale;
  factor += facts.lse_scale;
  if (!facts.good) factor = static_cast<float>(NAN);
  // Two floats: with logits near 1e4 a single one would leave p three correct digits.
  const float high = static_cast<float>(lse);
  float low = fabsf(high) == kInfinity ? 0.0f : static_cast<float>(lse - high);
  if (fabs(lse) > kMaxExactLse && fabsf(high) < kInfinity && facts.graded())
    low = log_of_max_count(a, row, high);
  const int64_t share = 4 * threads(), begin = block_x() % parts * share + thread();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto c = static_cast<int>(begin + i * threads());
    if (c >= row.chunks()) break;
    float x[W] = {};
    if (facts.graded()) {
      numbers_of<T, W>(row.load(row.first_of(c)), x);
      gradient<T, kGeneral, W>(a, facts, row, row.first_of(c), x, high, low, factor);
    }
    out.store(out.first_of(c), x);
  }
}

// Writes the summed weight of the targets that are not ignored, their number, and the summed weight
// of all classes.
LF_KERNEL(kReduceThreads) totals(CrossEntropyArgs a, double* out) {
  double count = 0, weights = 0, all = 0;
  for (int64_t n = thread(); a.target && n < a.tokens; n += threads()) {
    const int64_t index = a.target[n];
    if (index == a.ignore_index) continue;
    count += 1;
    if (a.weight && index >= 0 && index < a.classes) weights += a.weight[index];
  }
  for (int c = thread(); a.weight && c < a.classes; c += threads()) all += a.weight[c];
  count = block_sum(count);
  weights = block_sum(weights);
  all = block_sum(all);
  if (thread() != 0) return;
  // Against probabilities torch averages over tokens, whatever their weights.
  if (!a.target) count = static_cast<double>(a.tokens);
  out[0] = a.target && a.weight ? weights : count;
  out[1] = count;
  out[2] = all;
}

LF_KERNEL(kReduceThreads) reduce(CrossEntropyArgs a, float* loss, float* z_loss) {
  double sum = 0, z_sum = 0;
  for (int64_t n = thread(); n < a.tokens; n += threads()) {
    sum += a.losses[n];
    z_sum += a.z_losses[n];
  }
  sum = block_sum(sum);
  z_sum = block_sum(z_sum);
  if (thread() != 0) return;
  if (a.mean) {
    sum /= a.totals[0];
    z_sum /= a.totals[1];
  }
  // The mean over no tokens is NaN. Without a z-loss, z_sum may be 0 / 0 and must not be added.
  *loss = static_cast<float>(a.z_loss != 0 ? sum + z_sum : sum);
  if (z_loss) *z_loss = static_cast<float>(z_sum);
}

// --- launches --------------------------------------------------------------------------------

// Whether rows of both tensors divide into the same chunks of 16 bytes.
bool has_chunks(const ClassRows& x, const ClassRows& y) {
  const int64_t size = element_size(x.dtype);
  const auto apart = reinterpret_cast<intptr_t>(x.data) - reinterpret_cast<intptr_t>(y.data);
  return x.strides[2] == 1 && y.strides[2] == 1 && apart % 16 == 0 &&
         (x.strides[0] - y.strides[0]) * size % 16 == 0 &&
         (x.strides[1] - y.strides[1]) * size % 16 == 0;
}

bool is_plain(const CrossEntropyArgs& a) {
  return a.target && a.smoothing == 0 && a.softcap == 0 && !a.argmax;
}

int64_t chunks_of(const CrossEntropyArgs& a, bool wide) {
  const int64_t width = wide ? 16 / element_size(a.logits.dtype) : 1;
  return wide ? a.classes / width + 2 : a.classes;  // with partial chunks at both ends
}

int64_t chunk_bytes(const CrossEntropyArgs& a, bool wide) {
  return wide ? 16 : element_size(a.logits.dtype);
}

// f(type, width, general) with the template arguments of the kernel for these arguments.
template <class T, class F>
void with_width(const CrossEntropyArgs& a, bool wide, const F& f) {
  using std::integral_constant;
  if (!wide) return f(T(), integral_constant<int, 1>(), std::true_type());
  if (is_plain(a)) return f(T(), integral_constant<int, kPerChunk<T>>(), std::false_type());
  f(T(), integral_constant<int, kPerChunk<T>>(), std::true_type());
}

template <class F>
void with_kernel(const CrossEntropyArgs& a, bool wide, const F& f) {
  switch (a.logits.dtype) {
    case DType::f32:
      return with_width<float>(a, wide, f);
    case DType::bf16:
      return with_width<bf16>(a, wide, f);
    default:
      return with_width<f16>(a, wide, f);
  }
}

void launch_backward(const Queue& queue, const CrossEntropyArgs& a, const RowSums* sums,
                     int splits) {
  const bool wide = has_chunks(a.logits, a.grad);
  const GradientPlan plan = gradient_plan(chunks_of(a, wide));
  with_kernel(a, wide, [&](auto type, auto width, auto general) {
    const Launch how{
        "cross_entropy_backward", {a.tokens * plan.parts, 1, 1}, plan.threads, 1, kRowScratch};
    launch(queue, how, backward<decltype(type), decltype(width)::value, decltype(general)::value>,
           a, plan.parts, sums, splits);
  });
}

}  // namespace

void cross_entropy_totals(const Queue& queue, const CrossEntropyArgs& a, double* out) {
  launch(queue, {"cross_entropy_totals", {1, 1, 1}, kReduceThreads, 1, kRowScratch}, totals, a,
         out);
}

void cross_entropy_reduce(const Queue& queue, const CrossEntropyArgs& a, float* loss,
                          float* z_loss) {
  launch(queue, {"cross_entropy_reduce", {1, 1, 1}, kReduceThreads, 1, kRowScratch}, reduce, a,
         loss, z_loss);
}

int64_t cross_entropy_parts(const Queue& queue, const CrossEntropyArgs& a, bool gradient) {
  const Gpu gpu = gpu_of(queue);
  if (gradient) {
    const bool wide = has_chunks(a.logits, a.grad);
    if (resident_plan(gpu, a.tokens, chunks_of(a, wide), chunk_bytes(a, wide)).fits) return 0;
  }
  const SweepPlan plan = sweep_plan(gpu, a.tokens, chunks_of(a, a.logits.strides[2] == 1));
  return plan.partial || (gradient && !a.target) ? a.tokens * plan.splits : 0;
}

void cross_entropy_forward(const Queue& queue, const CrossEntropyArgs& a, RowSums* parts) {
  if (a.tokens == 0) return;
  const bool wide = a.logits.strides[2] == 1;
  const SweepPlan plan = sweep_plan(gpu_of(queue), a.tokens, chunks_of(a, wide));
  const int cluster = parts ? 1 : plan.splits;
  const Launch how{"cross_entropy",
                   {a.tokens * cluster, parts ? plan.splits : 1, 1},
                   plan.threads,
                   cluster,
                   kRowScratch};
  with_kernel(a, wide, [&](auto type, auto width, auto general) {
    launch(queue, how, forward<decltype(type), decltype(width)::value, decltype(general)::value>, a,
           plan.share, parts);
  });
  if (!parts) return;
  launch(queue, {"cross_entropy_combine", {a.tokens, 1, 1}, 32, 1, 0}, combine, a,
         static_cast<const RowSums*>(parts), plan.splits);
}

void cross_entropy_fused(const Queue& queue, const CrossEntropyArgs& a, RowSums* parts) {
  if (a.tokens == 0) return;
  const bool wide = has_chunks(a.logits, a.grad);
  const ResidentPlan plan =
      resident_plan(gpu_of(queue), a.tokens, chunks_of(a, wide), chunk_bytes(a, wide));
  if (!plan.fits) {
    cross_entropy_forward(queue, a, parts);
    const int splits =
        sweep_plan(gpu_of(queue), a.tokens, chunks_of(a, a.logits.strides[2] == 1)).splits;
    return launch_backward(queue, a, a.target ? nullptr : parts, splits);
  }
  const Launch how{"cross_entropy_fused",
                   {a.tokens * plan.cluster, 1, 1},
                   plan.threads,
                   plan.cluster,
                   plan.shared_bytes};
  with_kernel(a, wide, [&](auto type, auto width, auto general) {
    launch(queue, how, fused<decltype(type), decltype(width)::value, decltype(general)::value>, a,
           static_cast<int>(plan.share));
  });
}

void cross_entropy_backward(const Queue& queue, const CrossEntropyArgs& a) {
  if (a.tokens > 0) launch_backward(queue, a, nullptr, 0);
}

}  // namespace cuda
}  // namespace llama_fast
