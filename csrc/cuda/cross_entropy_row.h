// Softmax cross-entropy of one row of logits: the arithmetic of the kernels.
//
//   z = x  or  softcap * tanh(x / softcap)          lse = log sum_c exp(z_c)
//   t = (1 - e) [c == y] + e / V,  or  (1 - e) q_c + e / V
//   loss = sum_c w_c t_c (lse - z_c) + z_loss * lse^2       p_c = exp(z_c - lse)
//   dloss/dz_c = p_c * (sum_k w_k t_k + 2 z_loss lse) - w_c t_c
//   dlse/dz_c = p_c          d/dx_c = d/dz_c * (1 - (z_c / softcap)^2)
//
// The part of t that is spread over the classes, w_c (e / V + (1 - e) q_c), is called u here. The
// sums of a row are max z, sum exp(z - shift), sum u, sum u (z - shift), and its largest logit with
// its index; shift is the largest z so far, or 0 where that is -inf. A row with +inf becomes NaN,
// as in torch.
#pragma once

#include "cuda/cross_entropy.h"
#include "cuda/device.h"

namespace llama_fast {
namespace cuda {
namespace {

constexpr float kInfinity = static_cast<float>(INFINITY);

LF_DEVICE int64_t row_start(const CrossEntropyArgs& a, const ClassRows& rows, int64_t row) {
  return row / a.inner * rows.strides[0] + row % a.inner * rows.strides[1];
}

// A row in chunks of W elements that begin at multiples of 16 bytes; the first and the last may be
// partly outside the row. With W = 1 the elements may lie anywhere.
template <class T, int W>
struct LogitRow {
  T* data;
  int64_t stride;
  int classes, lead;  // lead: elements of the first chunk before the row

  LF_DEVICE LogitRow(const CrossEntropyArgs& a, const ClassRows& rows, int64_t row)
      : data(static_cast<T*>(rows.data) + row_start(a, rows, row)),
        stride(rows.strides[2]),
        classes(a.classes),
        lead(static_cast<int>(reinterpret_cast<uintptr_t>(data) / sizeof(T) % W)) {}

  LF_DEVICE int chunks() const { return (lead + classes + W - 1) / W; }
  LF_DEVICE int first_of(int chunk) const { return chunk * W - lead; }
  LF_DEVICE bool whole(int first) const { return first >= 0 && first + W <= classes; }
  LF_DEVICE bool has(int c) const { return c >= 0 && c < classes; }

  // Elements outside the row are -inf, which adds nothing to a sum of exponentials.
  LF_DEVICE Chunk load(int first) const {
    if (W > 1 && whole(first)) return load_chunk(data + first);
    T part[kPerChunk<T>] = {};
#pragma unroll
    for (int j = 0; j < W; ++j)
      part[j] = has(first + j) ? data[(first + j) * stride] : narrow<T>(-kInfinity);
    Chunk chunk;
    memcpy(&chunk, part, sizeof chunk);
    return chunk;
  }

  LF_DEVICE void store(int first, const float (&g)[W]) const {
    if constexpr (W > 1) {
      if (whole(first)) return store_chunk_once(data + first, pack_chunk<T>(g));
    }
#pragma unroll
    for (int j = 0; j < W; ++j)
      if (has(first + j)) data[(first + j) * stride] = narrow<T>(g[j]);
  }
};

template <class T, int W>
LF_DEVICE void numbers_of(const Chunk& chunk, float (&to)[W]) {
  if constexpr (W == 1) {
    T one;
    memcpy(&one, &chunk, sizeof one);
    to[0] = widen(one);
  } else {
    unpack<T>(chunk, to);
  }
}

LF_DEVICE float cap(float x, float softcap) {
  return softcap != 0 ? softcap * tanhf(x / softcap) : x;
}

LF_DEVICE float shift_of(float max) { return max == -kInfinity ? 0.0f : max; }

// Maps logits to unsigned numbers in the same order: NaN is the largest, and the first of equal
// logits is larger than the others.
LF_DEVICE uint64_t rank_of(float x, int c) {
  uint32_t bits;
  x += 0.0f;  // -0 is 0
  memcpy(&bits, &x, sizeof bits);
  bits = x != x ? 0xffffffff : bits & 0x80000000 ? ~bits : bits | 0x80000000;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffff - static_cast<uint32_t>(c));
}
LF_DEVICE int64_t class_of(uint64_t rank) { return 0xffffffff - static_cast<uint32_t>(rank); }

// What is known about a row before its logits are read.
struct RowFacts {
  int64_t row, index;  // index: the target's class, or -1
  bool kept, good;     // not ignored; a class
  float at_label;      // (1 - e) w_y
  // Upstream gradients of cross-entropy, z-loss and lse; the first two are zero where ignored.
  float ce_scale, z_scale, lse_scale;
  const void* probability;  // of this row
  float smoothing_each;     // e / V

  LF_DEVICE RowFacts(const CrossEntropyArgs& a, int64_t r)
      : row(r), index(-1), kept(true), good(true), at_label(0), probability(nullptr) {
    if (a.target) {
      index = a.target[row];
      kept = index != a.ignore_index;
      good = index >= 0 && index < a.classes;
      at_label = 1.0f - a.smoothing;
      if (a.weight) at_label *= good ? a.weight[index] : 0.0f;
    }
    smoothing_each = a.smoothing / static_cast<float>(a.classes);
    ce_scale = z_scale = a.grad_loss ? a.grad_loss[row * a.grad_step] : 1.0f;
    if (a.mean) {
      ce_scale /= static_cast<float>(a.totals[0]);
      z_scale /= static_cast<float>(a.totals[1]);
    }
    lse_scale = a.grad_lse ? a.grad_lse[row] : 0.0f;
    if (!kept) {  // no target
      index = -1;
      good = true;
      at_label = ce_scale = z_scale = 0;
    }
  }

  // Whether there is an upstream gradient.
  LF_DEVICE bool graded() const { return kept || lse_scale != 0; }

  // u of class c.
  LF_DEVICE float spread(const CrossEntropyArgs& a, int c) const {
    float u = smoothing_each;
    if (!a.target) {
      float q[1];
      load_numbers(a.probability.data, a.probability.dtype,
                   row_start(a, a.probability, row) + c * a.probability.strides[2], q);
      u += (1.0f - a.smoothing) * q[0];
    }
    return a.weight ? u * a.weight[c] : u;
  }
};

LF_DEVICE bool is_spread(const CrossEntropyArgs& a) { return a.smoothing > 0 || !a.target; }

// Adds a chunk to the sums of a thread. kGeneral: u, softcap and argmax may be needed.
template <class T, bool kGeneral, int W>
LF_DEVICE void add(const CrossEntropyArgs& a, const RowFacts& facts, const LogitRow<T, W>& row,
                   int first, const float (&x)[W], RowSums& s) {
  float z[W];
#pragma unroll
  for (int j = 0; j < W; ++j) {
    z[j] = x[j];
    if constexpr (kGeneral)
      if (a.softcap != 0) z[j] = row.has(first + j) ? cap(x[j], a.softcap) : -kInfinity;
  }
  float max = s.max;
#pragma unroll
  for (int j = 0; j < W; ++j) max = fmaxf(max, z[j]);
  const float shift = shift_of(max);
  if (max > s.max) {
    s.sum *= exp_for<T>(s.max - shift);
    if constexpr (kGeneral) s.weighted += s.target * (shift_of(s.max) - shift);
    s.max = max;
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < W; ++j) sum += exp_for<T>(z[j] - shift);
  s.sum += sum;
  if constexpr (kGeneral) {
    const bool spread = is_spread(a);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if (!row.has(first + j)) continue;
      if (spread) {
        const float u = facts.spread(a, first + j);
        s.target += u;
        s.weighted += u * (z[j] - shift);
      }
      if (a.argmax) {
        const uint64_t rank = rank_of(x[j], first + j);
        if (rank > s.top) s.top = rank;
      }
    }
  }
}

LF_DEVICE RowSums no_sums() { return {-kInfinity, 0, 0, 0, 0}; }

// The sums over all lanes, returned to every lane.
template <bool kGeneral>
LF_DEVICE RowSums warp_sums(const RowSums& s) {
  RowSums all = no_sums();
  all.max = warp_max(s.max);
  const float shift = shift_of(all.max);
  all.sum = warp_sum(s.sum * expf(s.max - shift));
  if constexpr (kGeneral) {
    all.weighted = warp_sum(s.weighted + s.target * (shift_of(s.max) - shift));
    all.target = warp_sum(s.target);
    all.top = s.top;
    for (int mask = 16; mask > 0; mask /= 2) {
      const auto other = shuffle_xor(static_cast<unsigned long long>(all.top), mask);
      if (other > all.top) all.top = other;
    }
  }
  return all;
}

// The sums over all threads of the block and of its cluster, returned to every thread.
template <bool kGeneral>
LF_DEVICE RowSums block_sums(RowSums s) {
  auto* scratch = reinterpret_cast<RowSums*>(shared_memory());
  s = warp_sums<kGeneral>(s);
  if (lane() == 0) scratch[warp()] = s;
  sync_block();
  s = warp_sums<kGeneral>(lane() < threads() / 32 ? scratch[lane()] : no_sums());
  if (cluster_size() == 1) return s;
  RowSums* whole = scratch + 32;
  if (thread() == 0) *whole = s;
  sync_cluster();
  return warp_sums<kGeneral>(lane() < cluster_size() ? *distributed(whole, lane()) : no_sums());
}

// Loss and statistics of a row, by one thread; `label` is the logit of the target's class.
LF_DEVICE void finish(const CrossEntropyArgs& a, const RowFacts& facts, const RowSums& s,
                      float label) {
  const double shift = shift_of(s.max), log_sum = log(static_cast<double>(s.sum));
  const double lse = shift + log_sum;
  double loss = 0, z_loss = 0;
  // Differences of logits first: lse itself may be large, and rounded.
  if (a.target) loss = facts.at_label * ((shift - cap(label, a.softcap)) + log_sum);
  if (is_spread(a)) loss += s.target * log_sum - s.weighted;
  if (a.z_loss != 0) z_loss = static_cast<double>(a.z_loss) * lse * lse;
  if (!facts.good) loss = static_cast<double>(NAN);
  if (!facts.kept) loss = z_loss = 0;
  if (a.loss) a.loss[facts.row] = static_cast<float>(loss + z_loss);
  if (a.z_loss_out) a.z_loss_out[facts.row] = static_cast<float>(z_loss);
  if (a.losses) a.losses[facts.row] = loss;
  if (a.z_losses) a.z_losses[facts.row] = z_loss;
  if (a.lse) a.lse[facts.row] = facts.kept || a.argmax ? lse : 0;
  if (a.argmax) a.argmax[facts.row] = class_of(s.top);
}

// The gradient of a chunk: p = exp((z - high) - low) * factor.
template <class T, bool kGeneral, int W>
LF_DEVICE void gradient(const CrossEntropyArgs& a, const RowFacts& facts, const LogitRow<T, W>& row,
                        int first, float (&x)[W], float high, float low, float factor) {
  const bool spread = kGeneral && is_spread(a), capped = kGeneral && a.softcap != 0;
#pragma unroll
  for (int j = 0; j < W; ++j) {
    const float tanh = capped ? tanhf(x[j] / a.softcap) : 0;
    const float z = capped ? a.softcap * tanh : x[j];
    float g = exp_for<T>((z - high) - low) * factor;
    if (spread && row.has(first + j)) g -= facts.spread(a, first + j) * facts.ce_scale;
    if (first + j == facts.index) g -= facts.at_label * facts.ce_scale;
    if (capped) g *= 1.0f - tanh * tanh;
    x[j] = g;
  }
}

}  // namespace
}  // namespace cuda
}  // namespace llama_fast
