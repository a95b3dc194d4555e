// Attention on the CPU, forward: tiles of scores with an online softmax (Milakov and Gimelshein,
// 2018; Dao et al., FlashAttention, 2022), so that the score matrix never exists.
//
// A work item is one key-value head of one sequence and a share of its query tiles. It packs the
// keys and values once and uses them for every query head of the group. Items write to places of
// their own and each row is summed in the order of its keys, so results do not depend on the
// number of threads.
#include "cpu/attention_row.h"
#include "cpu/parallel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

template <class M>
struct Forward {
  using T = typename M::acc;
  using V = vec<T>;
  using raw = typename M::raw;
  using elem = typename M::elem;
  static constexpr int lanes = kLanes<T>;

  const AttentionArgs& a;
  const int64_t group = a.kv_heads > 0 ? a.heads / a.kv_heads : 0;
  const int64_t key_size = padded<M>(a.head_size), key_steps = key_size / M::kPack;
  const int64_t value_size = padded<M>(a.value_size);

  // Working memory of an item.
  elem *keys, *values;  // packed, tile after tile
  raw *query_rows, *key_rows, *probabilities;
  T *scores, *sum, *row_max, *factors;
  wide<T>* row_sum;

  size_t carve(void* base, int64_t max_keys) {
    Carver memory(base);
    const int64_t n = ceil_div(max_keys, kTileKeys) * kTileKeys;
    keys = memory.take<elem>(n * key_steps);
    values = memory.take<elem>(n / M::kPack * value_size);
    query_rows = memory.take<raw>(kTileQueries * key_size);
    key_rows = memory.take<raw>(kTileKeys * max(key_size, value_size));
    scores = memory.take<T>(kBlockQueries * kTileKeys);
    probabilities = sizeof(raw) == sizeof(T) ? reinterpret_cast<raw*>(scores)
                                             : memory.take<raw>(kBlockQueries * kTileKeys);
    sum = memory.take<T>(kTileQueries * value_size);
    row_max = memory.take<T>(kTileQueries);
    row_sum = memory.take<wide<T>>(kTileQueries);
    factors = memory.take<T>(kTileKeys);
    return memory.used();
  }

  void pack(const Sequence& s, int64_t kv_head, int64_t first_tile, int64_t last_tile) {
    for (int64_t t = first_tile; t < last_tile; ++t) {
      const int64_t n = min(kTileKeys, s.keys - t * kTileKeys), row = s.first_key + t * kTileKeys;
      read_block<M>(a.k, a.dtype, s.batch, kv_head, row, n, a.head_size, key_size, key_rows);
      pack_transposed<M>(key_rows, key_size, n, key_size, keys + t * kTileKeys * key_steps);
      read_block<M>(a.v, a.dtype, s.batch, kv_head, row, n, a.value_size, value_size, key_rows);
      pack_along<M>(key_rows, value_size, n, value_size,
                    values + t * (kTileKeys / M::kPack) * value_size);
    }
  }

  LF_INLINE void store_raw(int64_t r, int64_t c, V p) {
    if constexpr (sizeof(raw) == sizeof(T)) {
      store(probabilities + r * kTileKeys + c, p);
    } else {
      const vec_u16 bits = narrow(bf16{}, p);
      std::memcpy(probabilities + r * kTileKeys + c, &bits, sizeof bits);
    }
  }

  void drop(const Sequence& s, int64_t head, int64_t i0, int64_t rows, int64_t j0, int64_t n) {
    for (int64_t r = 0; r < rows; ++r) {
      dropout_factors(a.dropout_seed, a.dropout_p, s.index * a.heads + head, i0 + r, j0, n,
                      factors);
      raw* p = probabilities + r * kTileKeys;
      for (int64_t c = 0; c < n; ++c) {
        if constexpr (sizeof(raw) == sizeof(T)) {
          p[c] *= factors[c];
        } else {
          auto* number = reinterpret_cast<bf16*>(p + c);
          store_one(number, load_one(number) * factors[c]);
        }
      }
    }
  }

  void query_tile(const Sequence& s, int64_t head, int64_t i0) {
    const int64_t rows = min(kTileQueries, s.queries - i0);
    read_block<M>(a.q, a.dtype, s.batch, head, s.first_query + i0, rows, a.head_size, key_size,
                  query_rows);
    for (int64_t r = 0; r < rows; ++r) row_max[r] = -kInfinity<T>, row_sum[r] = 0;
    for (int64_t c = 0; c < rows * value_size; ++c) sum[c] = 0;

    const Scores<M> score(a, s, head);
    const int64_t begin = visible(a, s, i0).begin, end = visible(a, s, i0 + rows - 1).end;
    for (int64_t t = begin / kTileKeys; t * kTileKeys < end; ++t)
      for (int64_t r = 0; r < rows; r += kBlockQueries)
        block(score, i0, r, min(kBlockQueries, rows - r), t * kTileKeys);
    for (int64_t r = 0; r < rows; ++r)
      finish_row<M>(a, s, head, i0 + r, row_max[r], row_sum[r], sum + r * value_size);
  }

  // Adds the key tile j0 to rows [first, first + rows) of the query tile i0.
  void block(const Scores<M>& score, int64_t i0, int64_t first, int64_t rows, int64_t j0) {
    const Sequence& s = score.s;
    const int64_t i = i0 + first, tile_keys = min(kTileKeys, s.keys - j0);
    const int64_t n = min(tile_keys, visible(a, s, i + rows - 1).end - j0);
    if (n <= 0 || visible(a, s, i).begin >= j0 + tile_keys) return;
    const int64_t width = round_lanes<M>(n);
    const StridedA<M> queries{reinterpret_cast<elem*>(query_rows + first * key_size), key_steps, 1};
    const PackedB<M> k{keys + j0 * key_steps, round_lanes<M>(tile_keys), key_steps};
    multiply_block<M>(rows, width, key_steps, queries, k, scores, kTileKeys, false);
    const T scale = score.untouched(i, rows, j0, n) ? static_cast<T>(a.scale)
                                                    : score.apply(i, rows, j0, n, scores, nullptr);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first + r;
      softmax_row<M>(scores + r * kTileKeys, width, scale, row_max[row], row_sum[row],
                     sum + row * value_size, value_size,
                     [&](int64_t c, V p) LF_LAMBDA { store_raw(r, c, p); });
    }
    if (a.dropout_p > 0) drop(s, score.head, i, rows, j0, n);
    const StridedA<M> p{reinterpret_cast<elem*>(probabilities), kTileKeys / M::kPack, 1};
    const PackedB<M> v{values + j0 / M::kPack * value_size, value_size, steps<M>(tile_keys)};
    multiply_block<M>(rows, value_size, steps<M>(n), p, v, sum + first * value_size, value_size,
                      true);
  }

  // Share `share` of `shares`: every shares-th query tile, which evens out causal masks.
  void item(int64_t sequence, int64_t kv_head, int64_t share, int64_t shares) {
    const Sequence s(a, sequence);
    const int64_t query_tiles = ceil_div(s.queries, kTileQueries);
    if (share >= query_tiles) return;
    carve(thread_scratch(carve(nullptr, s.keys)), s.keys);
    [[maybe_unused]] const BlockScope<M> scope;
    const int64_t last_tile = share + (query_tiles - 1 - share) / shares * shares;
    const int64_t first_key = visible(a, s, share * kTileQueries).begin;
    const int64_t end_key = visible(a, s, min(s.queries, (last_tile + 1) * kTileQueries) - 1).end;
    pack(s, kv_head, first_key / kTileKeys, ceil_div(end_key, kTileKeys));
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
      for (int64_t t = share; t < query_tiles; t += shares) query_tile(s, head, t * kTileQueries);
  }

  void run() {
    const int64_t units = a.batch * a.kv_heads;
    const int64_t max_shares = max(1, ceil_div(a.queries, kTileQueries));
    // Four items a thread balance the load; more would only pack the keys again.
    const int64_t shares = min(max_shares, ceil_div(4 * num_threads(), max(units, 1)));
    const double work = static_cast<double>(a.batch) * a.heads * a.queries * a.keys * a.head_size;
    const AttentionArgs& args = a;
    parallel_items(units * shares, work > 1e6, [&](int64_t i) {
      Forward<M> own{args};
      const int64_t unit = i / shares;
      own.item(unit / args.kv_heads, unit % args.kv_heads, i % shares, shares);
    });
  }
};

}  // namespace

bool attention_decode(const AttentionArgs& a);  // attention_decode.cpp

void attention_forward(const AttentionArgs& a) {
  if (attention_decode(a)) return;
  if (a.dtype == DType::f64) Forward<F64>{a}.run();
#if defined(LF_BF16_PRODUCTS)
  else if (a.dtype == DType::bf16)
    Forward<Bf16>{a}.run();
#endif
  else
    Forward<F32>{a}.run();
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
