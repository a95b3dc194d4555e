// Attention of a few queries over many keys (decoding with a cache), forward: limited by reading
// keys and values once. They are used where they are, without packing.
//
// A work item is one key-value head of one sequence and a chunk of its keys, with all the queries
// of the group. Each chunk leaves its own maximum, sum and weighted sum of values; a second loop
// merges the chunks of a row in order. Chunks have a fixed length, so results do not depend on the
// number of threads. Each sequence has as many chunks as its own keys need: one long sequence among
// short ones costs no more than by itself.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/attention_few.h"
#include "cpu/attention_row.h"
#include "cpu/parallel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kChunkKeys = 4 * kTileKeys;   // of an item
constexpr int64_t kGroup = kPageUnit;           // keys from one prefetch to the next
constexpr int64_t kMinParallelMerge = 1 << 16;  // sums that are worth a second thread

// Elem: the element type of the tensors. Products are those of M, in the type computed in or of
// pairs of bfloat16 numbers.
template <class M, class Elem>
struct Decode {
  using T = typename M::acc;
  using V = vec<T>;
  using Number = typename M::raw;
  static constexpr int lanes = kLanes<T>;

  const AttentionArgs& a;
  const int64_t group = a.heads / a.kv_heads;
  const int64_t rows = group * a.queries;  // of an item
  const int64_t key_size = whole(a.head_size), value_size = whole(a.value_size);
  const std::vector<int64_t> first_items = count_items();  // of each sequence; then their number
  const int64_t items = first_items.back();
  // Of every item and row: maximum, sum, weighted sum of values.
  std::unique_ptr<T[]> row_max{new T[items * rows]}, sums{new T[items * rows * value_size]};
  std::unique_ptr<wide<T>[]> row_sum{new wide<T>[items * rows]};

  explicit Decode(const AttentionArgs& args) : a(args) {}

  int64_t keys_of(int64_t sequence) const {
    if (a.key_lengths != nullptr) return a.key_lengths[sequence];
    if (a.cu_keys != nullptr) return a.cu_keys[sequence + 1] - a.cu_keys[sequence];
    return a.keys;
  }
  // Of a head of a sequence.
  int64_t chunks_of(int64_t sequence) const {
    return max(1, ceil_div(keys_of(sequence), kChunkKeys));
  }

  std::vector<int64_t> count_items() const {
    std::vector<int64_t> first{0};
    for (int64_t b = 0; b < a.batch; ++b) first.push_back(first.back() + a.kv_heads * chunks_of(b));
    return first;
  }

  // n numbers in whole registers.
  static int64_t whole(int64_t n) { return round_up(n, lanes * M::kPack); }

  // Working memory of an item. The weights are the scores after the softmax.
  struct ItemBuffers {
    Number* queries;
    T* scores;
    Number* weights;
    Elem *keys, *values;
  };
  size_t carve(Carver memory, ItemBuffers& buffers) const {
    buffers.queries = memory.take<Number>(rows * key_size);
    buffers.scores = memory.take<T>(rows * kTileKeys);
    if constexpr (M::kPack > 1) {
      buffers.weights = memory.take<Number>(rows * kTileKeys);
    } else {
      buffers.weights = buffers.scores;
    }
    buffers.keys = memory.take<Elem>(a.k.stride_col == 1 ? 0 : kTileKeys * a.head_size);
    buffers.values = memory.take<Elem>(a.v.stride_col == 1 ? 0 : kTileKeys * a.value_size);
    return memory.used();
  }

  // Keys or values from position `first` on: consecutive in memory, or in pages.
  struct CachedRows {
    const Elem* p;
    int64_t stride;  // from row to row
    // Of pages: p is row 0 of page 0.
    int64_t first = 0, page = 0, page_stride = 0, table_stride = 0;
    const int32_t* table = nullptr;

    // n rows, of a page at most, from the j-th on.
    RowsInPlace<Elem> from(int64_t j, int64_t n) const {
      if (table == nullptr) return {p + j * stride, stride, n};
      const int64_t t = first + j;
      const Elem* rows = p + table[t / page * table_stride] * page_stride;
      return {rows + t % page * stride, stride, n};
    }
  };
  // n rows of a head from its j0-th on; those with gaps between their numbers go to `buffer`.
  CachedRows cached_rows(const Tensor4& t, const Sequence& s, int64_t head, int64_t j0, int64_t n,
                         int64_t size, Elem* buffer) const {
    if (a.page_table != nullptr)
      return {row_pointer<Elem>(t, 0, head, 0),
              t.stride_row,
              j0,
              a.page,
              t.stride_batch,
              a.table_stride_page,
              a.page_table + s.index * a.table_stride_batch};
    const Elem* p = row_pointer<Elem>(t, s.batch, head, s.first_key + j0);
    if (t.stride_col == 1) return {p, t.stride_row};
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < size; ++c)
        buffer[j * size + c] = p[j * t.stride_row + c * t.stride_col];
    return {buffer, size};
  }

  // Prefetches rows: the hardware prefetcher follows one matrix, and keys and values take turns.
  static LF_INLINE void prefetch(RowsInPlace<Elem> rows, int64_t size) {
    constexpr int64_t line = 64 / sizeof(Elem);
    for (int64_t j = 0; j < rows.rows; ++j)
      for (int64_t c = 0; c < size; c += line)
        __builtin_prefetch(rows.p + j * rows.stride + c, 0, 2);
  }

  void item(int64_t index) {
    const auto above = std::upper_bound(first_items.begin(), first_items.end(), index);
    const int64_t sequence = above - first_items.begin() - 1, chunks = chunks_of(sequence);
    const int64_t place = index - first_items[static_cast<size_t>(sequence)];
    const Sequence s(a, sequence);
    const int64_t kv_head = place / chunks, chunk = place % chunks * kChunkKeys;
    T *o = &sums[index * rows * value_size], *largest = &row_max[index * rows];
    wide<T>* total = &row_sum[index * rows];
    for (int64_t r = 0; r < rows; ++r) largest[r] = -kInfinity<T>, total[r] = 0;
    for (int64_t c = 0; c < rows * value_size; ++c) o[c] = 0;
    if (s.queries == 0) return;
    const int64_t begin = max(chunk, visible(a, s, 0).begin);
    const int64_t end = min(chunk + kChunkKeys, visible(a, s, s.queries - 1).end);
    if (begin >= end) return;

    ItemBuffers buffers;
    carve(Carver(thread_scratch(carve(Carver(), buffers))), buffers);
    Number *queries = buffers.queries, *weights = buffers.weights;
    T* scores = buffers.scores;
    for (int64_t h = 0; h < group; ++h)
      for (int64_t i = 0; i < s.queries; ++i) {
        Number* q = queries + (h * s.queries + i) * key_size;
        read_row(a.q, a.dtype, s.batch, kv_head * group + h, s.first_query + i, a.head_size, q);
        for (int64_t c = a.head_size; c < key_size; ++c) q[c] = 0;
      }
    const int64_t used = group * s.queries;  // rows, of packed sequences maybe less than `rows`
    for (int64_t j0 = begin; j0 < end; j0 += kTileKeys) {
      const int64_t n = min(kTileKeys, end - j0), width = round_lanes<M>(n);
      const CachedRows k = cached_rows(a.k, s, kv_head, j0, n, a.head_size, buffers.keys);
      const CachedRows v = cached_rows(a.v, s, kv_head, j0, n, a.value_size, buffers.values);
      for (int64_t j = 0; j < n; j += kGroup) {
        const int64_t some = min(kGroup, n - j);
        prefetch(v.from(j, some), a.value_size);
        for_row_groups(used, [&](auto count, int64_t r) LF_LAMBDA {
          few_scores<M, decltype(count)::value>(queries + r * key_size, key_size, k.from(j, some),
                                                a.head_size, scores + r * kTileKeys + j);
        });
      }
      for (int64_t h = 0; h < group; ++h) {
        const Scores<M> score(a, s, kv_head * group + h);
        T* x = scores + h * s.queries * kTileKeys;
        const T scale = score.untouched(0, s.queries, j0, n)
                            ? static_cast<T>(a.scale)
                            : score.apply(0, s.queries, j0, n, x, nullptr);
        for (int64_t i = 0; i < s.queries; ++i, x += kTileKeys) {
          const int64_t r = h * s.queries + i;
          softmax_row<M>(x, width, scale, largest[r], total[r], o + r * value_size, value_size,
                         [&](int64_t c, V p) LF_LAMBDA { put(weights + r * kTileKeys + c, p); });
        }
      }
      for (int64_t j = 0; j < n; j += kGroup) {
        const int64_t next = kTileKeys + j, left = end - j0 - next;
        if (left > 0) prefetch(k.from(next, min(kGroup, left)), a.head_size);
        for_row_groups(used, [&](auto count, int64_t r) LF_LAMBDA {
          const RowsInPlace<Elem> rows = v.from(j, min(kGroup, n - j));
          add_weighted_rows<M, decltype(count)::value>(weights + r * kTileKeys + j, kTileKeys,
                                                       rows.p, rows.stride, rows.rows, a.value_size,
                                                       o + r * value_size, value_size);
        });
      }
    }
  }

  static LF_INLINE void put(T* weights, V p) { store(weights, p); }
  static LF_INLINE void put(uint16_t* weights, V p) {
    const vec_u16 bits = narrow(bf16{}, p);
    std::memcpy(weights, &bits, sizeof bits);
  }

  // Merges the chunks of the rows of one key-value head, in order, and writes the rows.
  void merge(int64_t unit) {
    const Sequence s(a, unit / a.kv_heads);
    const int64_t kv_head = unit % a.kv_heads, chunks = chunks_of(s.index);
    const int64_t first = first_items[static_cast<size_t>(s.index)] + kv_head * chunks;
    for (int64_t r = 0; r < group * s.queries; ++r) {
      const auto row = [&](int64_t chunk) { return (first + chunk) * rows + r; };
      T largest = -kInfinity<T>;
      for (int64_t c = 0; c < chunks; ++c)
        largest = row_max[row(c)] > largest ? row_max[row(c)] : largest;
      T* o = &sums[row(0) * value_size];
      wide<T> total = 0;
      for (int64_t c = 0; c < chunks; ++c) {
        const T* part = &sums[row(c) * value_size];
        // A chunk without a visible key has nothing to add, but may hold a NaN.
        const T factor = row_max[row(c)] == -kInfinity<T> ? T(row_max[row(c)] == largest)
                                                          : std::exp(row_max[row(c)] - largest);
        total += row_sum[row(c)] * factor;
        for (int64_t x = 0; x < value_size; x += lanes) {
          const V sum = load(part + x) * factor;
          store(o + x, c == 0 ? sum : load(o + x) + sum);
        }
      }
      weighted_rows_in_order<M>(value_size, o);
      finish_row<M>(a, s, kv_head * group + r / s.queries, r % s.queries, largest, total, o);
    }
  }

  void run() {
    double keys = 0;
    for (int64_t b = 0; b < a.batch; ++b) keys += static_cast<double>(keys_of(b));
    const bool worth_threads = keys * a.heads * a.queries * a.head_size > 1e6;
    parallel_items(items, worth_threads, [&](int64_t i) { item(i); });
    const bool parallel_merge = items * rows * value_size > kMinParallelMerge;
    parallel_items(a.batch * a.kv_heads, parallel_merge, [&](int64_t i) { merge(i); });
  }
};

}  // namespace

bool attention_decode(const AttentionArgs& a) {
  if (!has_few_rows(a)) return false;
  if (a.dtype == DType::f64) Decode<F64, double>(a).run();
  if (a.dtype == DType::f32) Decode<F32, float>(a).run();
#if defined(LF_BF16_PRODUCTS)
  if (a.dtype == DType::bf16) Decode<Bf16, bf16>(a).run();
#else
  if (a.dtype == DType::bf16) Decode<F32, bf16>(a).run();
#endif
  if (a.dtype == DType::f16) Decode<F32, f16>(a).run();
  return true;
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
