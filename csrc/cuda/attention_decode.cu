// Attention of a few queries over a cache of keys and values, to which it appends the new ones. Its
// time is that of reading the cache once.
//
// A sequence's keys are cut into shares, one per block (attention_decode_block.h). At the end a
// block merges its warps, and a second kernel the shares, always in the same order. New keys are
// read from the arguments, never from the cache, so blocks need not wait for the one that appends
// them.
#include "cuda/attention_decode.h"
#include "cuda/attention_decode_block.h"

namespace llama_fast {
namespace cuda {
namespace {

constexpr float kLn2 = 0.6931471805599453f;

// Writes the new keys and values of the block's share into the cache.
template <class T, int D>
LF_DEVICE void append(const AttentionDecodeArgs& a, const BlockWork& w) {
  constexpr int kChunks = D / kPerChunk<T>;
  const int first = w.begin > w.held ? w.begin : w.held;
  for (int i = thread(); i < (w.end - first) * kChunks; i += threads()) {
    const int position = first + i / kChunks, at = i % kChunks * kPerChunk<T>;
    int row;
    const int page = locate(a, w.batch, position, row);
    if (page == kNoPage) continue;
    const int from = position - w.held;
    store_chunk(row_of<T>(a.k_cache, page, w.kv_head, row) + at,
                load_chunk(row_of<T>(a.k, w.batch, w.kv_head, from) + at));
    store_chunk(row_of<T>(a.v_cache, page, w.kv_head, row) + at,
                load_chunk(row_of<T>(a.v, w.batch, w.kv_head, from) + at));
  }
}

// The factor of a part in a sum whose maximum is `max`; 0 for a part without a visible key.
LF_DEVICE float weight_of(float part_max, float max) {
  return part_max == -INFINITY ? 0.0f : exp2_fast(part_max - max);
}

// Returns the factor of the sum of values of a row with this maximum and sum, and writes the
// log-sum-exp.
LF_DEVICE float finish(const AttentionDecodeArgs& a, int64_t batch, int64_t head, int64_t query,
                       RowSoftmax row, bool write) {
  float shrink = 1;
  if (a.sinks) {
    const float sink = a.sinks[head] * kLog2e, max = fmaxf(row.max, sink);
    shrink = weight_of(row.max, max);
    row = {max, row.sum * shrink + weight_of(sink, max)};
  }
  const bool empty = row.sum == 0;
  if (write)
    a.lse[(batch * a.heads + head) * a.queries + query] =
        empty ? -INFINITY : row.max * kLn2 + logf(row.sum);
  return empty ? 0.0f : shrink / row.sum;
}

template <class T, int D, int kTiles>
LF_KERNEL(32 * kDecodeWarps)
decode(AttentionDecodeArgs a, int64_t shares, int row_blocks) {
  using Block = Decoder<T, D, kTiles>;
  const BlockWork w = work_of<Block::kKeys>(a, shares, row_blocks, Block::kRows);
  const int64_t unit = w.batch * a.kv_heads + w.kv_head;
  const auto part_of = [&](int row) { return (unit * shares + w.share) * w.rows + row; };
  if (shares > 1 && w.begin == w.end && !w.bad) {  // the sequence is short
    const int row = w.first_row + thread();
    if (thread() < Block::kRows && row < w.rows) {
      a.part_max[part_of(row)] = -INFINITY;
      a.part_sum[part_of(row)] = 0;
    }
    return;
  }
  if (a.k.data && w.first_row == 0) append<T, D>(a, w);
  Block block(a, w);
  block.load_queries();
  sync_block();
  block.run();
  block.store_sums();
  sync_block();

  // One warp for each row, two numbers for each lane.
  for (int r = warp(); r < Block::kRows && w.first_row + r < w.rows; r += kDecodeWarps) {
    RowSoftmax whole = {-INFINITY, 0.0f};
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i) whole.max = fmaxf(whole.max, Block::warp_rows(i)[r].max);
    float weight[kDecodeWarps];
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i) {
      const RowSoftmax part = Block::warp_rows(i)[r];
      weight[i] = weight_of(part.max, whole.max);
      whole.sum += part.sum * weight[i];
    }
    const int row = w.first_row + r;
    const int64_t head = w.kv_head * block.group + row % block.group, query = row / block.group;
    const int64_t part = part_of(row);
    float factor = 1;
    if (shares == 1) {
      factor = finish(a, w.batch, head, query, whole, lane() == 0);
    } else if (lane() == 0) {
      a.part_max[part] = whole.max;
      a.part_sum[part] = whole.sum;
    }
#pragma unroll
    for (int d = 2 * lane(); d < D; d += 64) {
      float sum[2] = {};
#pragma unroll
      for (int i = 0; i < kDecodeWarps; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          sum[j] += Block::warp_sums(i)[r * Block::kPadded + d + j] * weight[i];
      if (shares == 1) {
        T* out = row_of<T>(a.out, w.batch, head, query);
        *reinterpret_cast<uint32_t*>(out + d) = pack<T>(sum[0] * factor, sum[1] * factor);
      } else {
        a.part_out[part * D + d] = sum[0];
        a.part_out[part * D + d + 1] = sum[1];
      }
    }
  }
}

// Merges the shares of one row: each warp adds some of them, then the sums of the warps are added.
template <class T, int D>
LF_KERNEL(32 * kDecodeWarps)
merge(AttentionDecodeArgs a, int64_t shares) {
  constexpr int kColumns = D / 32;  // of a lane
  const int64_t rows = a.heads / a.kv_heads * a.queries;
  const int64_t unit = block_x() / rows, r = block_x() % rows;
  const auto part = [&](int64_t share) { return (unit * shares + share) * rows + r; };
  float max = -INFINITY;
  for (int64_t s = lane(); s < shares; s += 32) max = fmaxf(max, a.part_max[part(s)]);
  max = warp_max(max);
  float total = 0, sum[kColumns] = {};
#pragma unroll 4
  for (int64_t s = warp(); s < shares; s += kDecodeWarps) {
    const float weight = weight_of(a.part_max[part(s)], max);
    if (weight == 0) continue;  // a share without a key leaves no sum of values
    total += a.part_sum[part(s)] * weight;
    const float* from = a.part_out + part(s) * D + lane();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sum[c] += from[c * 32] * weight;
  }
  auto* shared = reinterpret_cast<float*>(shared_memory());  // (warps, D + 1)
#pragma unroll
  for (int c = 0; c < kColumns; ++c) shared[warp() * (D + 1) + c * 32 + lane()] = sum[c];
  if (lane() == 0) shared[warp() * (D + 1) + D] = total;
  sync_block();
  RowSoftmax row = {max, 0.0f};
  for (int i = 0; i < kDecodeWarps; ++i) row.sum += shared[i * (D + 1) + D];
  const int64_t group = a.heads / a.kv_heads, batch = unit / a.kv_heads;
  const int64_t head = unit % a.kv_heads * group + r % group, query = r / group;
  const float factor = finish(a, batch, head, query, row, thread() == 0);
  T* out = row_of<T>(a.out, batch, head, query);
  for (int d = thread(); d < D; d += threads()) {
    float whole = 0;
    for (int i = 0; i < kDecodeWarps; ++i) whole += shared[i * (D + 1) + d];
    out[d] = narrow<T>(whole * factor);
  }
}

template <class T, int D, int kTiles>
void launch_tiles(const Queue& queue, const AttentionDecodeArgs& a, int64_t shares) {
  const int64_t rows = a.heads / a.kv_heads * a.queries, units = a.batch * a.kv_heads;
  const auto row_blocks = static_cast<int>(ceil_div(rows, kTiles * kTileRows));
  constexpr int kThreads = 32 * kDecodeWarps;
  const Launch how{"attention_decode",
                   {units * shares * row_blocks, 1, 1},
                   kThreads,
                   1,
                   decode_shared_bytes(D, kTiles)};
  launch(queue, how, decode<T, D, kTiles>, a, shares, row_blocks);
  if (shares == 1) return;
  const Launch second{
      "attention_decode merge", {units * rows, 1, 1}, kThreads, 1, kDecodeWarps * (D + 1) * 4};
  launch(queue, second, merge<T, D>, a, shares);
}

template <class T>
void launch_as(const Queue& queue, const AttentionDecodeArgs& a, int64_t shares) {
  const bool two = decode_tiles(a.head_size, a.heads / a.kv_heads * a.queries) == 2;
  if (a.head_size == 64)
    return two ? launch_tiles<T, 64, 2>(queue, a, shares)
               : launch_tiles<T, 64, 1>(queue, a, shares);
  if (a.head_size == 128)
    return two ? launch_tiles<T, 128, 2>(queue, a, shares)
               : launch_tiles<T, 128, 1>(queue, a, shares);
  launch_tiles<T, 256, 1>(queue, a, shares);
}

}  // namespace

void attention_decode(const Queue& queue, const AttentionDecodeArgs& a, int64_t shares) {
  a.dtype == DType::bf16 ? launch_as<bf16>(queue, a, shares) : launch_as<f16>(queue, a, shares);
}

}  // namespace cuda
}  // namespace llama_fast
