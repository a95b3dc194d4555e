// Attention on the CPU, backward. With P = exp(score - lse) recomputed tile by tile and
// delta = rowsum(dO * O) - dlse (Dao et al., FlashAttention, 2022, appendix B):
//     dV = P' dO,   dS = P * (dO V' - delta),   dK = scale dS' Q,   dQ = scale dS K.
//
// A work item is one key-value head of one sequence. It makes dQ, dK and dV in one sweep over the
// tiles, without atomics: key tiles outside, query tiles inside. Where there are too few heads to
// occupy the threads, items make either dK and dV of a share of the key tiles or dQ of a share of
// the query tiles instead. Either way each number is summed in the same order, so results do not
// depend on the number of threads.
#include "cpu/attention_delta.h"
#include "cpu/attention_few.h"
#include "cpu/attention_tile.h"
#include "cpu/parallel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

// Every `step`-th tile, beginning with `first`.
struct TileShare {
  int64_t first, step;
  int64_t count(int64_t tiles) const {
    return tiles <= first ? 0 : (tiles - first + step - 1) / step;
  }
};
constexpr TileShare kAll{0, 1};

template <class M>
struct Backward {
  using T = typename M::acc;
  using V = vec<T>;
  using raw = typename M::raw;
  using elem = typename M::elem;
  static constexpr int lanes = kLanes<T>;
  static constexpr int64_t kQuerySteps = kTileQueries / M::kPack;

  const AttentionArgs& a;
  const Sequence s;
  const int64_t kv_head;
  const TileShare query_share, key_share;
  const bool want_q, want_k, want_v;
  const bool few = has_few_rows(a);

  const int64_t key_size = padded<M>(a.head_size), key_steps = key_size / M::kPack;
  const int64_t value_size = padded<M>(a.value_size), value_steps = value_size / M::kPack;
  const int64_t query_tiles = query_share.count(ceil_div(s.queries, kTileQueries));
  const int64_t key_tiles = key_share.count(ceil_div(s.keys, kTileKeys));

  // Packed operands, tile after tile. "rows" are used as A, "steps" as B along the rows. With few
  // rows keys_transposed holds the keys as they are.
  elem *keys_transposed = nullptr, *values_transposed, *key_rows, *query_steps, *grad_steps;
  raw *query_rows, *grad_rows, *read_buffer;
  T *grad_q, *grad_k, *grad_v;  // sums
  // One tile (of Bf16 only a block of it) and its bfloat16 copies.
  T *scores, *grad_scores, *cap_slope, *factors;
  raw* grad_score_rows;                        // (query, key): A of dQ
  elem *probability_steps, *grad_score_steps;  // (query step, key): A of dV and dK

  Backward(const AttentionArgs& args, int64_t sequence, int64_t kv, TileShare queries,
           TileShare keys, bool q, bool k, bool v)
      : a(args),
        s(args, sequence),
        kv_head(kv),
        query_share(queries),
        key_share(keys),
        want_q(q),
        want_k(k),
        want_v(v) {
    carve(Carver(thread_scratch(carve(Carver()))));
  }

  size_t carve(Carver memory) {
    const int64_t k = key_tiles * kTileKeys, q = query_tiles * kTileQueries;
    keys_transposed = memory.take<elem>(k * key_steps);
    values_transposed = memory.take<elem>(k * value_steps);
    key_rows = memory.take<elem>(k / M::kPack * key_size);
    query_rows = memory.take<raw>(q * key_size);
    grad_rows = memory.take<raw>(q * value_size);
    query_steps = memory.take<elem>(q / M::kPack * key_size);
    grad_steps = memory.take<elem>(q / M::kPack * value_size);
    read_buffer = memory.take<raw>(kTileKeys * max(key_size, value_size));
    grad_q = memory.take<T>(want_q ? q * key_size : 0);
    grad_k = memory.take<T>(want_k ? k * key_size : 0);
    grad_v = memory.take<T>(want_v ? k * value_size : 0);
    const int64_t tile_rows = M::kPack == 1 ? kTileQueries : kBlockQueries;
    scores = memory.take<T>(tile_rows * kTileKeys);
    grad_scores = memory.take<T>(tile_rows * kTileKeys);
    cap_slope = memory.take<T>(a.softcap > 0 ? kBlockQueries * kTileKeys : 0);
    factors = memory.take<T>(kTileKeys);
    if constexpr (M::kPack == 1) {  // the tiles are used as they are
      grad_score_rows = grad_scores;
      probability_steps = scores;
      grad_score_steps = grad_scores;
    } else {
      grad_score_rows = memory.take<raw>(kTileQueries * kTileKeys);
      probability_steps = memory.take<elem>(kQuerySteps * kTileKeys);
      grad_score_steps = memory.take<elem>(kQuerySteps * kTileKeys);
    }
    return memory.used();
  }

  int64_t first_key(int64_t t) const { return (key_share.first + t * key_share.step) * kTileKeys; }
  int64_t first_query(int64_t t) const {
    return (query_share.first + t * query_share.step) * kTileQueries;
  }

  void pack_keys() {
    for (int64_t t = 0; t < key_tiles; ++t) {
      const int64_t j0 = first_key(t), n = min(kTileKeys, s.keys - j0), row = s.first_key + j0;
      const int64_t k = t * kTileKeys;
      read_block<M>(a.v, a.dtype, s.batch, kv_head, row, n, a.value_size, value_size, read_buffer);
      pack_transposed<M>(read_buffer, value_size, n, value_size,
                         values_transposed + k * value_steps);
      elem* transposed = keys_transposed + k * key_steps;
      raw* rows = few ? reinterpret_cast<raw*>(transposed) : read_buffer;
      read_block<M>(a.k, a.dtype, s.batch, kv_head, row, n, a.head_size, key_size, rows);
      if (!few) pack_transposed<M>(rows, key_size, n, key_size, transposed);
      if (want_q) pack_along<M>(rows, key_size, n, key_size, key_rows + k / M::kPack * key_size);
    }
  }

  void pack_queries(int64_t head) {
    for (int64_t t = 0; t < query_tiles; ++t) {
      const int64_t i0 = first_query(t), n = min(kTileQueries, s.queries - i0),
                    q = t * kTileQueries;
      const int64_t row = s.first_query + i0;
      raw *queries = query_rows + q * key_size, *grads = grad_rows + q * value_size;
      read_block<M>(a.q, a.dtype, s.batch, head, row, n, a.head_size, key_size, queries);
      read_block<M>(a.grad_out, a.dtype, s.batch, head, row, n, a.value_size, value_size, grads);
      if (want_k)
        pack_along<M>(queries, key_size, n, key_size, query_steps + q / M::kPack * key_size);
      if (want_v)
        pack_along<M>(grads, value_size, n, value_size, grad_steps + q / M::kPack * value_size);
    }
  }

  static void zero(T* p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = 0;
  }

  void run() {
    [[maybe_unused]] const BlockScope<M> scope;
    pack_keys();
    for (int64_t t = 0; t < key_tiles; ++t) {
      const int64_t n = min(kTileKeys, s.keys - first_key(t)), k = t * kTileKeys;
      if (want_k) zero(grad_k + k * key_size, n * key_size);
      if (want_v) zero(grad_v + k * value_size, n * value_size);
    }
    const int64_t group = a.heads / a.kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      pack_queries(head);
      for (int64_t t = 0; want_q && t < query_tiles; ++t)
        zero(grad_q + t * kTileQueries * key_size,
             min(kTileQueries, s.queries - first_query(t)) * key_size);
      const Scores<M> score(a, s, head);
      for (int64_t key_tile = 0; key_tile < key_tiles; ++key_tile)
        for (int64_t query_tile = 0; query_tile < query_tiles; ++query_tile)
          sweep(score, query_tile, key_tile);
      if (want_q)
        for (int64_t t = 0; t < query_tiles; ++t)
          write(a.grad_q, head, s.first_query + first_query(t), s.queries - first_query(t),
                kTileQueries, a.head_size, key_size, grad_q + t * kTileQueries * key_size, a.scale);
    }
    for (int64_t t = 0; t < key_tiles; ++t) {
      const int64_t row = s.first_key + first_key(t), left = s.keys - first_key(t);
      if (want_k)
        write(a.grad_k, kv_head, row, left, kTileKeys, a.head_size, key_size,
              grad_k + t * kTileKeys * key_size, a.scale);
      if (want_v)
        write(a.grad_v, kv_head, row, left, kTileKeys, a.value_size, value_size,
              grad_v + t * kTileKeys * value_size, 1.0);
    }
  }

  void write(const Tensor4& to, int64_t head, int64_t row, int64_t left, int64_t max_rows,
             int64_t n, int64_t stride, T* from, double scale) {
    for (int64_t r = 0; r < min(left, max_rows); ++r, from += stride) {
      for (int64_t c = 0; c < stride; c += lanes)
        store(from + c, load(from + c) * static_cast<T>(scale));
      write_row(to, a.dtype, s.batch, head, row + r, n, from);
    }
  }

  // Everything that one tile adds to the sums.
  void sweep(const Scores<M>& score, int64_t query_tile, int64_t key_tile) {
    const int64_t i0 = first_query(query_tile), rows = min(kTileQueries, s.queries - i0);
    const int64_t j0 = first_key(key_tile), tile_keys = min(kTileKeys, s.keys - j0);
    const int64_t n = min(tile_keys, visible(a, s, i0 + rows - 1).end - j0);
    if (n <= 0 || visible(a, s, i0).begin >= j0 + tile_keys) return;
    const int64_t q = query_tile * kTileQueries, k = key_tile * kTileKeys;

    int64_t
        seen[kTileQueries / kBlockQueries];  // keys that each block of rows sees; never decreases
    for (int64_t r = 0; r < rows; r += kBlockQueries)
      seen[r / kBlockQueries] = block(score, i0, r, min(kBlockQueries, rows - r), j0, n, q, k);

    const PackedB<M> queries{query_steps + q / M::kPack * key_size, key_size, steps<M>(rows)};
    const PackedB<M> grads{grad_steps + q / M::kPack * value_size, value_size, steps<M>(rows)};
    for (int64_t c = 0, next; c < n; c = next) {
      const int64_t first = first_row(seen, c);
      for (next = c + kBlockQueries; next < n && first_row(seen, next) == first;)
        next += kBlockQueries;
      const int64_t keys = min(next, n) - c, step = first / M::kPack;
      if (want_v)
        multiply_block<M>(keys, value_size, grads.steps - step,
                          {probability_steps + step * kTileKeys + c, 1, kTileKeys}, grads,
                          grad_v + (k + c) * value_size, value_size, true, step);
      if (want_k)
        multiply_block<M>(keys, key_size, queries.steps - step,
                          {grad_score_steps + step * kTileKeys + c, 1, kTileKeys}, queries,
                          grad_k + (k + c) * key_size, key_size, true, step);
    }
  }

  // The first row of a block that sees key c of the tile.
  static int64_t first_row(const int64_t* seen, int64_t c) {
    int64_t b = 0;
    while (seen[b] <= c) ++b;
    return b * kBlockQueries;
  }

  // Rows [first, first + rows) of the tile: probabilities, dS, and what they add to dQ. Returns how
  // many of the tile's keys the rows see; beyond them all is zero.
  int64_t block(const Scores<M>& score, int64_t i0, int64_t first, int64_t rows, int64_t j0,
                int64_t tile_n, int64_t q, int64_t k) {
    const int64_t i = i0 + first, tile_keys = min(kTileKeys, s.keys - j0);
    const KeyRange range = visible(a, s, i + rows - 1);
    const int64_t n = max(0, min(tile_keys, range.end - j0));
    T *x = scores, *g = grad_scores;
    if constexpr (M::kPack == 1) x += first * kTileKeys, g += first * kTileKeys;
    const int64_t width = round_lanes<M>(n), tile_width = round_lanes<M>(tile_n);
    if (width < tile_width)
      for (int64_t r = 0; r < rows; ++r) {
        zero(x + r * kTileKeys + width, tile_width - width);
        zero(g + r * kTileKeys + width, tile_width - width);
      }
    if (n > 0) {
      const int64_t columns = round_lanes<M>(tile_keys);
      const raw* queries = query_rows + (q + first) * key_size;
      const raw* grads = grad_rows + (q + first) * value_size;
      const elem* keys = keys_transposed + k * key_steps;
      if (few)
        for_row_groups(rows, [&](auto count, int64_t r) {
          few_scores<M, decltype(count)::value>(
              queries + r * key_size, key_size,
              RowsInPlace<raw>{reinterpret_cast<const raw*>(keys), key_size, n}, a.head_size,
              x + r * kTileKeys);
        });
      else
        multiply_block<M>(rows, width, key_steps,
                          {reinterpret_cast<const elem*>(queries), key_steps, 1},
                          {keys, columns, key_steps}, x, kTileKeys, false);
      multiply_block<M>(
          rows, width, value_steps, {reinterpret_cast<const elem*>(grads), value_steps, 1},
          {values_transposed + k * value_steps, columns, value_steps}, g, kTileKeys, false);
      const T scale = score.untouched(i, rows, j0, n) ? static_cast<T>(a.scale)
                                                      : score.apply(i, rows, j0, n, x, cap_slope);
      for (int64_t r = 0; r < rows; ++r)
        grad_row(score, i + r, j0, n, scale, x + r * kTileKeys, g + r * kTileKeys,
                 cap_slope + r * kTileKeys);
    }
    if constexpr (M::kPack > 1) this->pack_block(first, rows, tile_width);
    if (want_q && n > 0)
      multiply_block<M>(
          rows, key_size, steps<M>(n),
          {reinterpret_cast<elem*>(grad_score_rows + first * kTileKeys), kTileKeys / M::kPack, 1},
          {key_rows + k / M::kPack * key_size, key_size, steps<M>(tile_keys)},
          grad_q + (q + first) * key_size, key_size, true);
    return n;
  }

  // One row: the scores x become probabilities (as dV needs them), the products g become dS.
  LF_INLINE void grad_row(const Scores<M>& score, int64_t i, int64_t j0, int64_t n, T scale, T* x,
                          T* g, const T* cap) {
    const int64_t width = round_lanes<M>(n), row = s.first_query + i;
    const T lse = at<T>(a.lse, s.batch, score.head, row);
    const T lse_low = at<T>(a.lse_low, s.batch, score.head, row);
    const T delta = at<T>(a.delta, s.batch, score.head, row);
    if (lse == -kInfinity<T>) {  // no visible key
      for (int64_t c = 0; c < width; c += lanes) store(x + c, V{}), store(g + c, V{});
      return;
    }
    if (a.dropout_p > 0) {
      dropout_factors(a.dropout_seed, a.dropout_p, s.index * a.heads + score.head, i, j0, n,
                      factors);
      for (int64_t c = 0; c < n; ++c) g[c] *= factors[c];
    }
    for (int64_t c = 0; c < width; c += lanes) {
      const V p = exp_softmax<M>(load(x + c) * scale - lse - lse_low);
      store(x + c, p);
      store(g + c, p * (load(g + c) - delta));
    }
    for (int64_t c = n; c < width; ++c) x[c] = g[c] = 0;
    if (a.grad_bias.data != nullptr) add_bias_gradient(score.head, i, j0, n, g);
    if (a.grad_alibi != nullptr) add_alibi_gradient(score, i, j0, n, g);
    if (a.softcap > 0)
      for (int64_t c = 0; c < n; ++c) g[c] *= cap[c];
    if (a.dropout_p > 0)
      for (int64_t c = 0; c < n; ++c) x[c] *= factors[c];
  }

  void add_bias_gradient(int64_t head, int64_t i, int64_t j0, int64_t n, const T* g) {
    const Tensor4& to = a.grad_bias;
    if (to.stride_row != 0 && to.stride_col != 0) {
      T* out = &at<T>(to, s.index, head, i) + j0;
      for (int64_t c = 0; c < n; ++c) out[c] += g[c];
    } else {
      double* out = &at<double>(to, s.index, head, i) + j0 * to.stride_col;
      for (int64_t c = 0; c < n; ++c) out[c * to.stride_col] += g[c];
    }
  }

  void add_alibi_gradient(const Scores<M>& score, int64_t i, int64_t j0, int64_t n, const T* g) {
    double total = 0;
    for (int64_t c = 0; c < n; ++c) total += static_cast<double>(g[c]) * score.distance(i, j0 + c);
    a.grad_alibi[s.index * a.heads + score.head] -= total;
  }

  // Bfloat16 copies of a block: dS by rows, and P and dS as steps of consecutive queries.
#if defined(LF_BF16_PRODUCTS)
  void pack_block(int64_t first, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r += M::kPack) {
      const int64_t count = min(M::kPack, rows - r);
      const int64_t out = (first + r) / M::kPack * kTileKeys;
      raw* dst = grad_score_rows + (first + r) * kTileKeys;
      for (int64_t c = 0; c < width; c += lanes) {
        vec_u16 p[M::kPack] = {}, g[M::kPack] = {};
#pragma GCC unroll 4
        for (int i = 0; i < M::kPack; ++i) {
          if (i >= count) break;
          p[i] = narrow(bf16{}, load(scores + (r + i) * kTileKeys + c));
          g[i] = narrow(bf16{}, load(grad_scores + (r + i) * kTileKeys + c));
          std::memcpy(dst + i * kTileKeys + c, &g[i], sizeof g[i]);
        }
        store_steps(p, probability_steps + out + c);
        store_steps(g, grad_score_steps + out + c);
      }
    }
  }
#endif
};

template <class M>
void attention_backward_of(const AttentionArgs& a) {
  const int64_t units = a.batch * a.kv_heads, threads = num_threads();
  const bool want_q = a.grad_q.data != nullptr, want_k = a.grad_k.data != nullptr;
  const bool want_v = a.grad_v.data != nullptr;
  const bool worth_threads =
      static_cast<double>(a.batch) * a.heads * a.queries * a.keys * a.head_size > 5e5;
  parallel_items(a.batch * a.heads, worth_threads,
                 [&](int64_t i) { prepare<M>(a, i / a.heads, i % a.heads); });

  // Sums over queries that do not belong to a key (a bias shared by rows, the slopes) need one
  // item to see every tile of a head.
  const bool shared_sums =
      a.grad_alibi != nullptr || (a.grad_bias.data != nullptr && a.grad_bias.stride_row == 0);
  // Products for each tile: 5 in one sweep; 4 for dK and dV and 3 for dQ in items of their own.
  const bool one_sweep = shared_sums || !worth_threads || !want_q || !(want_k || want_v) ||
                         ceil_div(units, threads) * threads * 5 <= units * 7;
  if (one_sweep) {
    parallel_items(units, worth_threads, [&](int64_t i) {
      Backward<M>(a, i / a.kv_heads, i % a.kv_heads, kAll, kAll, want_q, want_k, want_v).run();
    });
    return;
  }
  const int64_t shares = max(1, ceil_div(2 * threads, units));
  AttentionArgs for_keys = a;  // the bias gradient is left to the items that make dQ
  for_keys.grad_bias.data = nullptr;
  parallel_items(units * shares * 2, true, [&](int64_t i) {
    const TileShare share{i / 2 % shares, shares};
    const int64_t unit = i / 2 / shares, sequence = unit / a.kv_heads, kv = unit % a.kv_heads;
    if (i % 2 == 0)
      Backward<M>(for_keys, sequence, kv, kAll, share, false, want_k, want_v).run();
    else
      Backward<M>(a, sequence, kv, share, kAll, true, false, false).run();
  });
}

}  // namespace

void attention_backward(const AttentionArgs& a) {
  if (a.dtype == DType::f64) attention_backward_of<F64>(a);
#if defined(LF_BF16_PRODUCTS)
  else if (a.dtype == DType::bf16)
    attention_backward_of<Bf16>(a);
#endif
  else
    attention_backward_of<F32>(a);
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
