// Attention of a few queries over many keys (decoding with a cache), forward:
// limited by reading keys and values once. They are used where they lie,
// without packing.
//
// A work item is one key-value head of one sequence and a chunk of its keys,
// with all the queries of the group. Each chunk leaves its own maximum, sum and
// sum of values; a second loop merges the chunks of a row in order. Chunks have
// a fixed length, so results do not depend on the number of threads. A sequence
// has as many as its own keys need: one long sequence among short ones costs no
// more than by itself.
#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/attention_few.h"
#include "cpu/attention_row.h"
#include "cpu/parallel.h"

namespace llama_fast {
namespace LLAMA_FAST_ISA {
namespace {

constexpr int64_t kChunk = 4 * kKeys;     // keys of an item
constexpr int64_t kGroup = kPageUnit;     // keys between two requests for the next ones
constexpr int64_t kWorthMerge = 1 << 16;  // sums that make a second thread worth while

// `Elem`: the element type of the tensors. Products are those of mode M, which
// has either numbers of the type computed in or pairs of bfloat16 numbers.
template <class M, class Elem>
struct Decode {
  using T = typename M::acc;
  using V = vec<T>;
  using Number = typename M::raw;
  static constexpr int lanes = kLanes<T>;
  static constexpr bool kPairs = M::kPack == 2;

  const AttentionArgs& a;
  const int64_t group = a.heads / a.kv_heads;
  const int64_t rows = group * a.queries;  // of an item
  const int64_t key_size = whole(a.head_size), value_size = whole(a.value_size);
  const std::vector<int64_t> first_items = firsts();  // of each sequence; at last their number
  const int64_t items = first_items.back();
  // Of every item and row: maximum, sum, sum of values.
  std::unique_ptr<T[]> row_max{new T[items * rows]}, sums{new T[items * rows * value_size]};
  std::unique_ptr<wide<T>[]> row_sum{new wide<T>[items * rows]};

  explicit Decode(const AttentionArgs& args) : a(args) {}

  int64_t keys_of(int64_t sequence) const {
    if (a.key_lengths != nullptr) return a.key_lengths[sequence];
    if (a.cu_keys != nullptr) return a.cu_keys[sequence + 1] - a.cu_keys[sequence];
    return a.keys;
  }
  // Of a head of a sequence.
  int64_t chunks_of(int64_t sequence) const { return larger(1, tiles(keys_of(sequence), kChunk)); }

  std::vector<int64_t> firsts() const {
    std::vector<int64_t> first{0};
    for (int64_t b = 0; b < a.batch; ++b) first.push_back(first.back() + a.kv_heads * chunks_of(b));
    return first;
  }

  // Numbers in whole registers.
  static int64_t whole(int64_t n) { return tiles(n, lanes * M::kPack) * lanes * M::kPack; }

  // Working memory of an item. The weights are the scores after the softmax.
  struct Working {
    Number* queries;
    T* scores;
    Number* weights;
    Elem *key_buffer, *value_buffer;
  };
  size_t carve(Carver memory, Working& w) const {
    w.queries = memory.take<Number>(rows * key_size);
    w.scores = memory.take<T>(rows * kKeys);
    if constexpr (kPairs) {
      w.weights = memory.take<Number>(rows * kKeys);
    } else {
      w.weights = w.scores;
    }
    w.key_buffer = memory.take<Elem>(a.k.stride_col == 1 ? 0 : kKeys * a.head_size);
    w.value_buffer = memory.take<Elem>(a.v.stride_col == 1 ? 0 : kKeys * a.value_size);
    return memory.used();
  }

  // Keys or values one after another in memory.
  struct Rows {
    const Elem* p;
    int64_t stride;

    Rows from(int64_t j) const { return {p + j * stride, stride}; }
  };
  // Keys or values from position `first` on: as Rows, or in pages.
  struct Runs {
    Rows rows;  // those of page 0
    int64_t first = 0, page = 0, page_size = 0, table_stride = 0;
    const int32_t* table = nullptr;

    Rows from(int64_t j) const {
      if (table == nullptr) return rows.from(j);
      const int64_t t = first + j;
      return Rows{rows.p + table[t / page * table_stride] * page_size, rows.stride}.from(t % page);
    }
  };
  Runs runs_of(const Tensor4& t, const Sequence& s, int64_t head, int64_t j0, int64_t n,
               int64_t size, Elem* buffer) const {
    if (a.page_table == nullptr)
      return {rows_of(t, s.batch, head, s.first_key + j0, n, size, buffer)};
    const int32_t* table = a.page_table + s.index * a.table_stride_batch;
    return {{row_pointer<Elem>(t, 0, head, 0), t.stride_row},
            j0,
            a.page,
            t.stride_batch,
            a.table_stride_page,
            table};
  }

  // Asks for n rows ahead of their use: the processor by itself follows one matrix, and keys and
  // values take turns.
  static LF_INLINE void fetch(Rows rows, int64_t n, int64_t size) {
    constexpr int64_t line = 64 / sizeof(Elem);
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < size; c += line)
        __builtin_prefetch(rows.p + j * rows.stride + c, 0, 2);
  }
  static Rows rows_of(const Tensor4& t, int64_t batch, int64_t head, int64_t first, int64_t n,
                      int64_t size, Elem* buffer) {
    const Elem* p = row_pointer<Elem>(t, batch, head, first);
    if (t.stride_col == 1) return {p, t.stride_row};
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < size; ++c)
        buffer[j * size + c] = p[j * t.stride_row + c * t.stride_col];
    return {buffer, size};
  }

  void item(int64_t index) {
    const auto above = std::upper_bound(first_items.begin(), first_items.end(), index);
    const int64_t sequence = above - first_items.begin() - 1, chunks = chunks_of(sequence);
    const int64_t place = index - first_items[static_cast<size_t>(sequence)];
    const Sequence s(a, sequence);
    const int64_t kv_head = place / chunks, chunk = place % chunks * kChunk;
    T *o = &sums[index * rows * value_size], *largest = &row_max[index * rows];
    wide<T>* total = &row_sum[index * rows];
    for (int64_t r = 0; r < rows; ++r) largest[r] = -kInfinity<T>, total[r] = 0;
    for (int64_t c = 0; c < rows * value_size; ++c) o[c] = 0;
    if (s.queries == 0) return;
    const int64_t begin = larger(chunk, visible(a, s, 0).begin);
    const int64_t end = smaller(chunk + kChunk, visible(a, s, s.queries - 1).end);
    if (begin >= end) return;

    Working w;
    carve(Carver(thread_scratch(carve(Carver(), w))), w);
    Number *queries = w.queries, *weights = w.weights;
    T* scores = w.scores;
    for (int64_t h = 0; h < group; ++h)
      for (int64_t i = 0; i < s.queries; ++i) {
        Number* q = queries + (h * s.queries + i) * key_size;
        read_row(a.q, a.dtype, s.batch, kv_head * group + h, s.first_query + i, a.head_size, q);
        for (int64_t c = a.head_size; c < key_size; ++c) q[c] = 0;
      }
    const int64_t used = group * s.queries;  // rows, of packed sequences maybe less than `rows`
    for (int64_t j0 = begin; j0 < end; j0 += kKeys) {
      const int64_t n = smaller(kKeys, end - j0), width = round_lanes<M>(n);
      const Runs k = runs_of(a.k, s, kv_head, j0, n, a.head_size, w.key_buffer);
      const Runs v = runs_of(a.v, s, kv_head, j0, n, a.value_size, w.value_buffer);
      for (int64_t j = 0; j < n; j += kGroup) {
        fetch(v.from(j), smaller(kGroup, n - j), a.value_size);
        by_rows(used, [&](auto count, int64_t r) LF_LAMBDA {
          const Rows keys = k.from(j);
          few_scores<M, decltype(count)::value>(queries + r * key_size, key_size, keys.p,
                                                keys.stride, a.head_size, smaller(kGroup, n - j),
                                                scores + r * kKeys + j);
        });
      }
      for (int64_t h = 0; h < group; ++h) {
        const Scores<M> score(a, s, kv_head * group + h);
        T* x = scores + h * s.queries * kKeys;
        const T scale = score.untouched(0, s.queries, j0, n)
                            ? static_cast<T>(a.scale)
                            : score.apply(0, s.queries, j0, n, x, nullptr);
        for (int64_t i = 0; i < s.queries; ++i, x += kKeys) {
          const int64_t r = h * s.queries + i;
          softmax_row<M>(x, width, scale, largest[r], total[r], o + r * value_size, value_size,
                         [&](int64_t c, V p) LF_LAMBDA { put(weights + r * kKeys + c, p); });
        }
      }
      for (int64_t j = 0; j < n; j += kGroup) {
        const int64_t next = kKeys + j, left = end - j0 - next;
        if (left > 0) fetch(k.from(next), smaller(kGroup, left), a.head_size);
        by_rows(used, [&](auto count, int64_t r) LF_LAMBDA {
          add_values<decltype(count)::value>(weights + r * kKeys + j, v.from(j),
                                             smaller(kGroup, n - j), o + r * value_size);
        });
      }
    }
  }

  static LF_INLINE void put(T* weights, V p) { store(weights, p); }
  static LF_INLINE void put(uint16_t* weights, V p) {
    const vec_u16 bits = narrow(bf16{}, p);
    std::memcpy(weights, &bits, sizeof bits);
  }

  // The sums of a group of keys are made by themselves: thousands in a row would round more.
  static LF_INLINE void add(T* o, V sum) { store(o, load(o) + sum); }

  template <int Count>
  void add_values(const T* p, Rows v, int64_t n, T* o) const {
    int64_t c = 0;
    for (; c + 4 * lanes <= a.value_size; c += 4 * lanes)
      add_columns<Count, 4>(p, {v.p + c, v.stride}, n, lanes, o + c);
    for (; c + lanes <= a.value_size; c += lanes)
      add_columns<Count, 1>(p, {v.p + c, v.stride}, n, lanes, o + c);
    if (c < a.value_size) add_columns<Count, 1>(p, {v.p + c, v.stride}, n, a.value_size - c, o + c);
  }

  // o += p v over n keys, for `Vecs` registers of columns, of which the last
  // holds `filled`.
  template <int Count, int Vecs>
  LF_INLINE void add_columns(const T* p, Rows v, int64_t n, int64_t filled, T* o) const {
    V sum[Count][Vecs];
#pragma GCC unroll 4
    for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < Vecs; ++c) sum[r][c] = V{};
    // These few keys are summed by themselves: each rounding is then of a small number.
    for (int64_t j = 0; j < n; ++j, v.p += v.stride)
#pragma GCC unroll 4
      for (int c = 0; c < Vecs; ++c) {
        const Elem* from = v.p + c * lanes;
        const V value = filled == lanes ? load_acc(from) : load_acc_n(from, filled, T(0));
#pragma GCC unroll 4
        for (int r = 0; r < Count; ++r) sum[r][c] += p[r * kKeys + j] * value;
      }
#pragma GCC unroll 4
    for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < Vecs; ++c) {
        T* to = o + r * value_size + c * lanes;
        store(to, load(to) + sum[r][c]);
      }
  }

#if defined(__AVX512BF16__)
  template <int Count>
  void add_values(const uint16_t* p, Rows v, int64_t n, T* o) const {
    int64_t c = 0;
    for (; c + 4 * lanes <= a.value_size; c += 4 * lanes)
      add_columns<Count, 2>(p, {v.p + c, v.stride}, n, 4 * lanes, o + c);
    for (; c < a.value_size; c += 2 * lanes)
      add_columns<Count, 1>(p, {v.p + c, v.stride}, n, a.value_size - c, o + c);
  }

  // o += p v over n keys, two at a time, for columns that fill `Vecs` registers
  // of pairs, or less. The sums come out in the order of in_order().
  template <int Count, int Vecs>
  LF_INLINE void add_columns(const uint16_t* p, Rows v, int64_t n, int64_t filled, T* o) const {
    V sum[Count][2 * Vecs];
#pragma GCC unroll 4
    for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < 2 * Vecs; ++c) sum[r][c] = V{};
    for (int64_t j = 0; j < n; j += 2, v.p += 2 * v.stride)
#pragma GCC unroll 2
      for (int c = 0; c < Vecs; ++c) {
        const Elem* from = v.p + c * 2 * lanes;
        const int64_t left = filled - c * 2 * lanes;
        const __m512i first = load_pairs(from, left);
        const __m512i second = j + 1 < n ? load_pairs(from + v.stride, left) : __m512i{};
        const __m512i low = _mm512_unpacklo_epi16(first, second);
        const __m512i high = _mm512_unpackhi_epi16(first, second);
#pragma GCC unroll 4
        for (int r = 0; r < Count; ++r) {
          int32_t pair;
          std::memcpy(&pair, p + r * kKeys + j, sizeof pair);
          sum[r][2 * c] = M::fma(sum[r][2 * c], _mm512_set1_epi32(pair), low);
          sum[r][2 * c + 1] = M::fma(sum[r][2 * c + 1], _mm512_set1_epi32(pair), high);
        }
      }
#pragma GCC unroll 4
    for (int r = 0; r < Count; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < 2 * Vecs; ++c) add(o + r * value_size + c * lanes, sum[r][c]);
  }
#endif

  // Unpacking interleaves quarters of a register: the first of two registers of
  // sums has columns 0-3, 8-11, 16-19, 24-27, the second those between.
  void in_order(T* o) const {
    if constexpr (kPairs) {
      for (int64_t begin = 0; begin < value_size; begin += 2 * lanes, o += 2 * lanes) {
        T mixed[2 * lanes];
        std::memcpy(mixed, o, sizeof mixed);
        for (int c = 0; c < 2 * lanes; ++c) o[c] = mixed[c / 4 % 2 * lanes + c / 8 * 4 + c % 4];
      }
    }
  }

  // Merges the chunks of the rows of one key-value head, in order, and writes
  // them.
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
        // A chunk without a visible key has nothing to add, but may have seen a
        // NaN.
        const T factor = row_max[row(c)] == -kInfinity<T> ? T(row_max[row(c)] == largest)
                                                          : std::exp(row_max[row(c)] - largest);
        total += row_sum[row(c)] * factor;
        for (int64_t x = 0; x < value_size; x += lanes) {
          const V sum = load(part + x) * factor;
          store(o + x, c == 0 ? sum : load(o + x) + sum);
        }
      }
      in_order(o);
      finish_row<M>(a, s, kv_head * group + r / s.queries, r % s.queries, largest, total, o);
    }
  }

  void run() {
    double keys = 0;
    for (int64_t b = 0; b < a.batch; ++b) keys += static_cast<double>(keys_of(b));
    const bool worth_threads = keys * a.heads * a.queries * a.head_size > 1e6;
    parallel_items(items, worth_threads, [&](int64_t i) { item(i); });
    const bool much = items * rows * value_size > kWorthMerge;
    parallel_items(a.batch * a.kv_heads, much, [&](int64_t i) { merge(i); });
  }
};

}  // namespace

bool attention_decode(const AttentionArgs& a) {
  if (!has_few_rows(a)) return false;
  if (a.dtype == DType::f64) Decode<F64, double>(a).run();
  if (a.dtype == DType::f32) Decode<F32, float>(a).run();
#if defined(__AVX512BF16__)
  if (a.dtype == DType::bf16) Decode<Bf16, bf16>(a).run();
#else
  if (a.dtype == DType::bf16) Decode<F32, bf16>(a).run();
#endif
  if (a.dtype == DType::f16) Decode<F32, f16>(a).run();
  return true;
}

}  // namespace LLAMA_FAST_ISA
}  // namespace llama_fast
