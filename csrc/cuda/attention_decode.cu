// Attention of a few queries over a cache of keys and values, which it appends to: limited by
// reading the cache once.
//
// The queries of all heads of a group are rows of one matrix product. The keys of a sequence are
// cut into shares, one a block; of a share the four warps take turns at steps of 16 or 32 keys,
// each with a pipeline of asynchronous copies and sums of its own, so that no warp waits for
// another. At the end a block merges its warps, and a second kernel the shares, always in the same
// order. New keys are read where they come from, never from the cache: who appends them does not
// matter to who reads them.
#include "cuda/attention_decode.h"
#include "cuda/attention_decode_plan.h"
#include "cuda/device.h"

namespace llama_fast {
namespace cuda {
namespace {

constexpr float kLn2 = 0.6931471805599453f;
constexpr int kNothing = -1, kNew = -2;  // instead of a page

// What a block works on. Positions are those of keys in their sequence.
struct Work {
  int64_t batch, kv_head, share;
  int first_row, rows;  // of the key head's rows: the block's first, and all
  int held, total;      // keys before and after the call
  int begin, end;       // of the share
  bool bad;             // a length that there cannot be
};

template <int kKeys>
LF_DEVICE Work work_of(const AttentionDecodeArgs& a, int64_t shares, int row_blocks, int rows) {
  Work w;
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

// The page and the row in it of a position in the cache; kNothing for a page that there is not.
LF_DEVICE int find(const AttentionDecodeArgs& a, int64_t batch, int position, int& row) {
  row = position;
  if (!a.table) return static_cast<int>(batch);
  const auto page = static_cast<int>(a.page);
  const int entry = position / page;
  row = position - entry * page;
  const int found = a.table[batch * a.table_stride_batch + entry * a.table_stride_page];
  return found >= 0 && found < a.pages ? found : kNothing;
}

template <class T>
LF_DEVICE T* row_of(const Tensor4& t, int64_t batch, int64_t head, int64_t row) {
  return static_cast<T*>(t.data) + batch * t.stride_batch + head * t.stride_head +
         row * t.stride_row;
}

// Writes the new keys and values of the block's share into the cache.
template <class T, int D>
LF_DEVICE void append(const AttentionDecodeArgs& a, const Work& w) {
  constexpr int kChunks = D / kPerChunk<T>;
  const int first = w.begin > w.held ? w.begin : w.held;
  for (int i = thread(); i < (w.end - first) * kChunks; i += threads()) {
    const int position = first + i / kChunks, at = i % kChunks * kPerChunk<T>;
    int row;
    const int page = find(a, w.batch, position, row);
    if (page == kNothing) continue;
    const int from = position - w.held;
    store_chunk(row_of<T>(a.k_cache, page, w.kv_head, row) + at,
                load_chunk(row_of<T>(a.k, w.batch, w.kv_head, from) + at));
    store_chunk(row_of<T>(a.v_cache, page, w.kv_head, row) + at,
                load_chunk(row_of<T>(a.v, w.batch, w.kv_head, from) + at));
  }
}

// Rows of D numbers in shared memory. Their chunks are mixed, so that the same chunk of eight rows
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
struct Row {
  float largest, sum;
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
  const Work& w;
  const int group = static_cast<int>(a.heads / a.kv_heads);
  Tile<T, D> queries{reinterpret_cast<T*>(shared_memory())};
  bool bad = false;
  Row row[kTiles][2];            // rows lane / 4 and 8 more of each tile
  float sums[kTiles][D / 8][4];  // of values, as a matrix product leaves them

  LF_DEVICE Decoder(const AttentionDecodeArgs& args, const Work& work) : a(args), w(work) {}

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

  // Asks for the keys and values of positions [first, first + kKeys), zeros from w.end on.
  LF_DEVICE void fetch(int first, int stage) {
    // Each lane looks one position up, and tells the others.
    const int position = first + lane() % kKeys;
    int page = kNothing, in_page = 0;
    if (position < w.end) {
      page = find(a, w.batch, position, in_page);
      bad = bad || page == kNothing;
      if (position >= w.held) {
        page = kNew;
        in_page = position - w.held;
      }
    }
    const Tile<T, D> keys = keys_of(stage), values = values_of(stage);
#pragma unroll 4
    for (int i = 0; i < kKeys * keys.kChunks / 32; ++i) {
      const int r = (i * 32 + lane()) / keys.kChunks, chunk = (i * 32 + lane()) % keys.kChunks;
      const int from = shuffle(page, r), at = shuffle(in_page, r);
      const bool fresh = from == kNew, valid = from != kNothing;
      const Tensor4 &k = fresh ? a.k : a.k_cache, &v = fresh ? a.v : a.v_cache;
      const int64_t where = fresh ? w.batch : valid ? from : 0;
      copy_async(keys.at(r, chunk), row_of<T>(k, where, w.kv_head, at) + chunk * kPerChunk<T>,
                 valid);
      copy_async(values.at(r, chunk), row_of<T>(v, where, w.kv_head, at) + chunk * kPerChunk<T>,
                 valid);
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
      sync_warp();  // all lanes have what they asked for, and are done with the stage before
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
    for (int t = 0; t < kTiles; ++t) softmax(t, position, scores[t]);
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

  // Scores of 16 rows to probabilities relative to the rows' running maxima.
  LF_DEVICE void softmax(int t, int position, float (&scores)[kKeys / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = w.first_row + t * kTileRows + half * 8 + lane() / 4;
      // The row's own position, and how far behind it the first visible key lies.
      const int own = w.total - static_cast<int>(a.queries) + r / group;
      const int oldest = a.window_left < 0 ? 0 : own - static_cast<int>(a.window_left);
      float slope = 0;
      if (a.alibi && r < w.rows)
        slope = a.alibi[w.batch * a.alibi_stride_batch + w.kv_head * group + r % group] * kLog2e;
      float largest = row[t][half].largest;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = position + n * 8 + lane() % 4 * 2 + i;
          float& x = scores[n][half * 2 + i];
          if (a.softcap > 0) {
            x = a.softcap * tanhf(x * a.scale / a.softcap) * kLog2e;
          } else {
            x *= a.scale * kLog2e;
          }
          if (a.alibi) x += slope * static_cast<float>(key - own);
          if (key < oldest || key > own || key >= w.end || r >= w.rows) x = -INFINITY;
          largest = larger(largest, x);
        }
      largest = larger(largest, shuffle_xor(largest, 1));
      largest = larger(largest, shuffle_xor(largest, 2));
      const float shift = largest == -INFINITY ? 0.0f : largest;
      const float shrink = exp2_fast(row[t][half].largest - shift);
      float sum = row[t][half].sum * shrink;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = scores[n][half * 2 + i];
          x = exp2_fast(x - shift);
          sum += x;
        }
      row[t][half] = {largest, sum};
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) sums[t][n][half * 2 + i] *= shrink;
    }
  }

  LF_DEVICE static float* warp_sums(int warp) {
    return reinterpret_cast<float*>(warp_memory(warp));
  }
  LF_DEVICE static Row* warp_rows(int warp) {
    return reinterpret_cast<Row*>(warp_memory(warp) + kSumsBytes);
  }

  // For the other warps to see.
  LF_DEVICE void publish() {
    sync_warp();  // all lanes are done with the keys and values that lie there
    float* to = warp_sums(warp());
    Row* rows = warp_rows(warp());
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = t * kTileRows + half * 8 + lane() / 4;
        if (lane() % 4 == 0) rows[r] = bad ? Row{0.0f, NAN} : row[t][half];
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i)
            to[r * kPadded + n * 8 + lane() % 4 * 2 + i] = sums[t][n][half * 2 + i];
      }
  }
};

// What a part adds to a whole whose maximum is `largest`. A part without a visible key adds
// nothing.
LF_DEVICE float weight_of(float part_max, float largest) {
  return part_max == -INFINITY ? 0.0f : exp2_fast(part_max - largest);
}

// From a row's maximum and sum: what to multiply its sum of values with. Writes the log-sum-exp.
LF_DEVICE float finish(const AttentionDecodeArgs& a, int64_t batch, int64_t head, int64_t query,
                       Row row, bool write) {
  float shrink = 1;
  if (a.sinks) {
    const float sink = a.sinks[head] * kLog2e, largest = larger(row.largest, sink);
    shrink = weight_of(row.largest, largest);
    row = {largest, row.sum * shrink + weight_of(sink, largest)};
  }
  const bool empty = row.sum == 0;
  if (write)
    a.lse[(batch * a.heads + head) * a.queries + query] =
        empty ? -INFINITY : row.largest * kLn2 + logf(row.sum);
  return empty ? 0.0f : shrink / row.sum;
}

template <class T, int D, int kTiles>
LF_KERNEL(32 * kDecodeWarps)
decode(AttentionDecodeArgs a, int64_t shares, int row_blocks) {
  using Block = Decoder<T, D, kTiles>;
  const Work w = work_of<Block::kKeys>(a, shares, row_blocks, Block::kRows);
  if (a.k.data && w.first_row == 0) append<T, D>(a, w);
  Block block(a, w);
  block.load_queries();
  sync_block();
  block.run();
  block.publish();
  sync_block();

  // A warp a row, two numbers a lane.
  const int64_t unit = w.batch * a.kv_heads + w.kv_head;
  for (int r = warp(); r < Block::kRows && w.first_row + r < w.rows; r += kDecodeWarps) {
    Row whole = {-INFINITY, 0.0f};
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i)
      whole.largest = larger(whole.largest, Block::warp_rows(i)[r].largest);
    float weight[kDecodeWarps];
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i) {
      const Row part = Block::warp_rows(i)[r];
      weight[i] = weight_of(part.largest, whole.largest);
      whole.sum += part.sum * weight[i];
    }
    const int row = w.first_row + r;
    const int64_t head = w.kv_head * block.group + row % block.group, query = row / block.group;
    const int64_t part = (unit * shares + w.share) * w.rows + row;
    float factor = 1;
    if (shares == 1) {
      factor = finish(a, w.batch, head, query, whole, lane() == 0);
    } else if (lane() == 0) {
      a.part_max[part] = whole.largest;
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

// Merges the shares of one row. The warps take turns at them, then their sums are added up.
template <class T, int D>
LF_KERNEL(32 * kDecodeWarps)
merge(AttentionDecodeArgs a, int64_t shares) {
  constexpr int kColumns = D / 32;  // of a lane
  const int64_t rows = a.heads / a.kv_heads * a.queries;
  const int64_t unit = block_x() / rows, r = block_x() % rows;
  const auto part = [&](int64_t share) { return (unit * shares + share) * rows + r; };
  float largest = -INFINITY;
  for (int64_t s = lane(); s < shares; s += 32) largest = larger(largest, a.part_max[part(s)]);
  largest = warp_max(largest);
  float total = 0, sum[kColumns] = {};
#pragma unroll 4
  for (int64_t s = warp(); s < shares; s += kDecodeWarps) {
    const float weight = weight_of(a.part_max[part(s)], largest);
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
  Row row = {largest, 0.0f};
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
  const auto row_blocks = static_cast<int>(divide_up(rows, kTiles * kTileRows));
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
