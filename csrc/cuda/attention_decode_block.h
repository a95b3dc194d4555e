// One block of the decoding kernel: its share of the keys of a sequence and key head, against rows
// that are the queries of all heads of the group.
//
// The warps take steps of 16 or 32 keys in turn. Each has its own pipeline of asynchronous copies
// and its own sums, so that no warp waits for another.
#pragma once

#include "cuda/attention_decode.h"
#include "cuda/attention_decode_plan.h"
#include "cuda/device.h"

namespace llama_fast {
namespace cuda {
namespace {

constexpr int kNoPage = -1, kNewKey = -2;  // in place of the number of a page

// What a block works on. Positions are those of keys in their sequence.
struct BlockWork {
  int64_t batch, kv_head, share;
  int first_row, rows;  // of the key head's rows: the block's first, and all
  int held, total;      // keys before and after the call
  int begin, end;       // of the share
  bool bad;             // the length is impossible
};

template <int kKeys>
LF_DEVICE BlockWork work_of(const AttentionDecodeArgs& a, int64_t shares, int row_blocks,
                            int rows) {
  BlockWork w;
  w.rows = static_cast<int>(a.heads / a.kv_heads * a.queries);
  w.first_row = static_cast<int>(block_x() % row_blocks) * rows;
  w.share = block_x() / row_blocks % shares;
  const int64_t unit = block_x() / row_blocks / shares;
  w.kv_head = unit % a.kv_heads;
  w.batch = unit / a.kv_heads;
  const auto queries = static_cast<int>(a.queries), added = a.k.data ? queries : 0;
  const int64_t held = a.seqlens[w.batch * a.seqlens_stride];
  w.bad = held < 0 || held + added > a.capacity;
  w.held = w.bad ? 0 : static_cast<int>(held);
  w.total = w.bad ? 0 : w.held + added;
  int64_t first = a.window_left < 0 ? 0 : w.total - queries - a.window_left;
  if (first < 0) first = 0;
  constexpr int kStep = kKeys * kDecodeWarps;
  const int64_t steps = (w.total - first + kStep - 1) / kStep;
  const int64_t size = (steps + shares - 1) / shares * kStep;
  const int64_t begin = first + w.share * size, end = begin + size;
  w.begin = static_cast<int>(begin < w.total ? begin : w.total);
  w.end = static_cast<int>(end < w.total ? end : w.total);
  return w;
}

// The page of a position in the cache, or kNoPage where the table names none; and the row in the
// page.
LF_DEVICE int locate(const AttentionDecodeArgs& a, int64_t batch, int position, int& row) {
  row = position;
  if (!a.table) return static_cast<int>(batch);
  const auto page = static_cast<uint32_t>(a.page), entry = static_cast<uint32_t>(position) / page;
  row = static_cast<int>(static_cast<uint32_t>(position) - entry * page);
  const int found = a.table[batch * a.table_stride_batch + entry * a.table_stride_page];
  return found >= 0 && found < a.pages ? found : kNoPage;
}

template <class T>
LF_DEVICE T* row_of(const Tensor4& t, int64_t batch, int64_t head, int64_t row) {
  return static_cast<T*>(t.data) + batch * t.stride_batch + head * t.stride_head +
         row * t.stride_row;
}

// Rows of D numbers in shared memory. Chunks are swizzled, so that the same chunk of eight rows
// lies in different banks.
template <class T, int D>
struct Tile {
  T* data;

  static constexpr int kChunks = D / kPerChunk<T>;
  LF_DEVICE T* at(int row, int chunk) const {
    return data + row * D + (chunk ^ (row % 8)) * kPerChunk<T>;
  }
};

// The online softmax of one row as one thread sees it; `sum` is over the thread's own columns.
struct RowSoftmax {
  float max, sum;
};

template <class T, int D, int kTiles>
struct Decoder {
  static constexpr int kKeys = decode_keys(D), kStages = decode_stages(D);
  static constexpr int kRows = kTiles * kTileRows;
  static constexpr int kStageNumbers = kKeys * D;         // of keys, and as many of values
  static constexpr int kPadded = D + 8;                   // of a row of sums in shared memory
  static constexpr int kSumsBytes = kRows * kPadded * 4;  // of a warp
  static constexpr int kWarpBytes = kStages * 2 * kStageNumbers * 2;
  static_assert(kSumsBytes + kRows * 8 <= kWarpBytes, "the sums go where keys and values were");

  const AttentionDecodeArgs& a;
  const BlockWork& w;
  const int group = static_cast<int>(a.heads / a.kv_heads);
  Tile<T, D> queries{reinterpret_cast<T*>(shared_memory())};
  bool bad = false;
  RowSoftmax row[kTiles][2];     // rows lane / 4 and 8 more of each tile
  float sums[kTiles][D / 8][4];  // of values, as a matrix product leaves them

  LF_DEVICE Decoder(const AttentionDecodeArgs& args, const BlockWork& work) : a(args), w(work) {}

  LF_DEVICE static char* warp_memory(int warp) {
    return shared_memory() + kRows * D * 2 + warp * kWarpBytes;
  }
  LF_DEVICE static Tile<T, D> keys_of(int stage) {
    return {reinterpret_cast<T*>(warp_memory(warp())) + stage * 2 * kStageNumbers};
  }
  LF_DEVICE static Tile<T, D> values_of(int stage) { return {keys_of(stage).data + kStageNumbers}; }

  LF_DEVICE void load_queries() {
    for (int i = thread(); i < kRows * queries.kChunks; i += threads()) {
      const int r = i / queries.kChunks, chunk = i % queries.kChunks, r_all = w.first_row + r;
      Chunk c = {};
      if (r_all < w.rows)
        c = load_chunk(row_of<T>(a.q, w.batch, w.kv_head * group + r_all % group, r_all / group) +
                       chunk * kPerChunk<T>);
      store_chunk(queries.at(r, chunk), c);
    }
  }

  // Starts copying the keys and values of positions [first, first + kKeys); zeros from w.end on.
  LF_DEVICE void fetch(int first, int stage) {
    constexpr int kChunks = D / kPerChunk<T>, kAtOnce = 32 / kChunks;  // rows of one copy
    const Tile<T, D> keys = keys_of(stage), values = values_of(stage);
    const int line = lane() / kChunks, chunk = lane() % kChunks;
    if (first + kKeys <= w.held && first + kKeys <= w.end) {
      int row;
      const int page = locate(a, w.batch, first, row);
      if (page != kNoPage && row + kKeys <= a.page) {  // contiguous in the cache
        const T* k = row_of<T>(a.k_cache, page, w.kv_head, row + line) + chunk * kPerChunk<T>;
        const T* v = row_of<T>(a.v_cache, page, w.kv_head, row + line) + chunk * kPerChunk<T>;
#pragma unroll
        for (int i = 0; i < kKeys / kAtOnce; ++i) {
          copy_async(keys.at(i * kAtOnce + line, chunk), k);
          copy_async(values.at(i * kAtOnce + line, chunk), v);
          k += kAtOnce * a.k_cache.stride_row;
          v += kAtOnce * a.v_cache.stride_row;
        }
        return;
      }
    }
    // Each lane looks up one position and shares it with the others.
    const int position = first + lane() % kKeys;
    int page = kNoPage, row = 0;
    if (position < w.end) {
      page = locate(a, w.batch, position, row);
      bad = bad || page == kNoPage;
      if (position >= w.held) {
        page = kNewKey;
        row = position - w.held;
      }
    }
#pragma unroll 1
    for (int i = 0; i < kKeys; i += kAtOnce) {
      const int from = shuffle(page, i + line), at = shuffle(row, i + line);
      const bool fresh = from == kNewKey, valid = from != kNoPage;
      const Tensor4 &k = fresh ? a.k : a.k_cache, &v = fresh ? a.v : a.v_cache;
      const int64_t where = fresh ? w.batch : valid ? from : 0;
      copy_async(keys.at(i + line, chunk),
                 row_of<T>(k, where, w.kv_head, at) + chunk * kPerChunk<T>, valid);
      copy_async(values.at(i + line, chunk),
                 row_of<T>(v, where, w.kv_head, at) + chunk * kPerChunk<T>, valid);
    }
  }

  // All steps of this warp.
  LF_DEVICE void run() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      row[t][0] = row[t][1] = {-INFINITY, 0.0f};
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
        sums[t][n][0] = sums[t][n][1] = sums[t][n][2] = sums[t][n][3] = 0;
    }
    constexpr int kStep = kKeys * kDecodeWarps;
    constexpr int kAhead = (kStages - 1) * kStep;
    const int first = w.begin + warp() * kKeys;
    int stage = 0, next = 0;
    for (int position = first - kAhead; position < w.end; position += kStep) {
      copy_async_wait<kStages - 2>();
      sync_warp();  // the copies of all lanes have arrived, and the previous stage is no longer
                    // used
      if (position + kAhead < w.end) fetch(position + kAhead, next);
      copy_async_commit();
      next = next + 1 == kStages ? 0 : next + 1;
      if (position < first) continue;
      step(position, stage);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    copy_async_wait<0>();
    bad = ballot(bad) != 0 || w.bad;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) row[t][half].sum = warp_sum(row[t][half].sum, 4);
  }

  LF_DEVICE void step(int position, int stage) {
    const Tile<T, D> keys = keys_of(stage), values = values_of(stage);
    const int matrix = lane() / 8, line = lane() % 8;  // that this lane names for a load
    float scores[kTiles][kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      uint32_t q[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
        load_matrices(q[t], queries.at(t * kTileRows + matrix % 2 * 8 + line, 2 * d + matrix / 2));
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t k[4];
        load_matrices(k, keys.at(n * 16 + matrix / 2 * 8 + line, 2 * d + matrix % 2));
        const uint32_t low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply_add<T>(scores[t][2 * n], q[t], low);
          multiply_add<T>(scores[t][2 * n + 1], q[t], high);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      score(t, position, scores[t]);
      softmax(t, scores[t]);
    }
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t p[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          p[t][i] =
              pack<T>(scores[t][2 * n + i / 2][i % 2 * 2], scores[t][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        uint32_t v[4];
        load_matrices_transposed(v, values.at(n * 16 + matrix % 2 * 8 + line, 2 * d + matrix / 2));
        const uint32_t low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply_add<T>(sums[t][2 * d], p[t], low);
          multiply_add<T>(sums[t][2 * d + 1], p[t], high);
        }
      }
    }
  }

  // Products to scores, in powers of two.
  LF_DEVICE void score(int t, int position, float (&x)[kKeys / 8][4]) {
    // f(key, half) for the elements of this thread: rows lane / 4 and 8 more.
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) f(x[n][i], position + n * 8 + lane() % 4 * 2 + i % 2, i / 2);
    };
    if (a.softcap > 0) {
      each([&](float& s, int, int) { s = a.softcap * tanhf(s * a.scale); });
    } else {
      each([&](float& s, int, int) { s *= a.scale; });
    }
    const auto queries = static_cast<int>(a.queries), left = static_cast<int>(a.window_left);
    const bool all_seen = position + kKeys <= w.end && position + kKeys <= w.total - queries + 1 &&
                          (left < 0 || position >= w.total - 1 - left);
    if (all_seen && !a.alibi) return;
    int own[2];  // the rows' own positions
    float slope[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = w.first_row + t * kTileRows + half * 8 + lane() / 4;
      own[half] = w.total - queries + r / group;
      if (a.alibi && r < w.rows)
        slope[half] =
            a.alibi[w.batch * a.alibi_stride_batch + w.kv_head * group + r % group] * kLog2e;
    }
    each([&](float& s, int key, int half) {
      s += slope[half] * static_cast<float>(key - own[half]);
      if (key >= w.end || key > own[half] || (left >= 0 && key < own[half] - left)) s = -INFINITY;
    });
  }

  // Turns the scores of 16 rows into probabilities relative to the running maxima of the rows. The
  // maximum ignores NaN, the sum does not.
  LF_DEVICE void softmax(int t, float (&x)[kKeys / 8][4]) {
    float shrink[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      RowSoftmax& r = row[t][half];
      float max = r.max;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) max = fmaxf(max, x[n][half * 2 + i]);
      max = fmaxf(max, shuffle_xor(max, 1));
      max = fmaxf(max, shuffle_xor(max, 2));
      const float shift = max == -INFINITY ? 0.0f : max;
      shrink[half] = exp2_fast(r.max - shift);
      float sum = r.sum * shrink[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          x[n][half * 2 + i] = exp2_fast(x[n][half * 2 + i] - shift);
          sum += x[n][half * 2 + i];
        }
      r = {max, sum};
    }
    if (!ballot(shrink[0] != 1 || shrink[1] != 1)) return;  // few steps change a maximum
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[t][n][i] *= shrink[i / 2];
  }

  LF_DEVICE static float* warp_sums(int warp) {
    return reinterpret_cast<float*>(warp_memory(warp));
  }
  LF_DEVICE static RowSoftmax* warp_rows(int warp) {
    return reinterpret_cast<RowSoftmax*>(warp_memory(warp) + kSumsBytes);
  }

  // Stores the sums of this warp in shared memory for the other warps.
  LF_DEVICE void store_sums() {
    sync_warp();  // all lanes are done with the keys and values that lie there
    float* to = warp_sums(warp());
    RowSoftmax* rows = warp_rows(warp());
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = t * kTileRows + half * 8 + lane() / 4;
        const RowSoftmax& mine = row[t][half];
        if (lane() % 4 == 0) rows[r] = bad || mine.sum != mine.sum ? RowSoftmax{0.0f, NAN} : mine;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            to[r * kPadded + n * 8 + lane() % 4 * 2 + i] = sums[t][n][half * 2 + i];
      }
  }
};

}  // namespace
}  // namespace cuda
}  // namespace llama_fast
