// Attention over a cache of keys and values: appends the new ones, then calls the attention kernel.
// It reads a contiguous cache where it lies, and with few queries a paged one too. Other paged
// caches are first copied together, one sequence at a time.
#include "cpu/attention_cache.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace {

void copy_row(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t n,
              int64_t element) {
  if (to_stride == 1 && from_stride == 1) {
    std::memcpy(to, from, n * element);
    return;
  }
  for (int64_t c = 0; c < n; ++c)
    std::memcpy(to + c * to_stride * element, from + c * from_stride * element, element);
}

// A tensor without its first `sequences` sequences.
Tensor4 skip_sequences(const Tensor4& t, int64_t sequences, int64_t element) {
  Tensor4 rest = t;
  rest.data = static_cast<char*>(t.data) + sequences * t.stride_batch * element;
  return rest;
}

class Decode {
 public:
  explicit Decode(const AttentionDecodeArgs& args)
      : a_(args),
        sizes_(args.attention),
        element_(element_size(sizes_.dtype)),
        wide_element_(sizes_.dtype == DType::f64 ? 8 : 4) {}

  size_t workspace() const {
    if (a_.page_table == nullptr || reads_pages()) return 0;
    int64_t max_count = 0;
    for (int64_t b = 0; b < sizes_.batch; ++b)
      max_count = std::max(max_count, a_.key_count(b) - a_.first_key(b));
    return carve(max_count, nullptr).bytes;
  }

  void run() {
    if (a_.appended() > 0)
      for (int64_t b = 0; b < sizes_.batch; ++b) append(b);
    if (reads_pages()) return attend_pages();
    if (a_.page_table != nullptr) {
      for (int64_t b = 0; b < sizes_.batch; ++b) attend_collected(b);
      return;
    }
    for (int64_t b = 0, n = 0; b < sizes_.batch; b += n) {
      for (n = 1; b + n < sizes_.batch && a_.key_count(b + n) == a_.key_count(b);) ++n;
      attend_contiguous(b, n);
    }
  }

 private:
  struct Collected {
    char *keys, *values;
    size_t bytes;
  };

  Collected carve(int64_t count, void* base) const {
    Carver memory(base);
    Collected c{};
    c.keys = memory.take<char>(sizes_.kv_heads * count * sizes_.head_size * element_);
    c.values = memory.take<char>(sizes_.kv_heads * count * sizes_.value_size * element_);
    c.bytes = memory.used();
    return c;
  }

  // Whether the attention kernel reads the pages where they lie.
  bool reads_pages() const {
    const bool few_rows =
        sizes_.kv_heads > 0 && sizes_.heads / sizes_.kv_heads * sizes_.queries <= kFewRows;
    return few_rows && sizes_.batch > 0 && a_.page_table != nullptr && a_.page % kPageUnit == 0 &&
           a_.k_cache.stride_col == 1 && a_.v_cache.stride_col == 1 && sizes_.window_left < 0;
  }

  char* row(const Tensor4& cache, int64_t sequence, int64_t head, int64_t position) const {
    const int64_t in_page = a_.page_table == nullptr ? position : position % a_.page;
    return static_cast<char*>(cache.data) +
           (a_.page_of(sequence, position) * cache.stride_batch + head * cache.stride_head +
            in_page * cache.stride_row) *
               element_;
  }

  void append(int64_t sequence) const {
    const int64_t held = a_.key_count(sequence) - a_.appended();
    const auto copy = [&](const Tensor4& cache, const Tensor4& added, int64_t size) {
      const Tensor4 from = skip_sequences(added, sequence, element_);
      for (int64_t h = 0; h < sizes_.kv_heads; ++h)
        for (int64_t i = 0; i < a_.appended(); ++i)
          copy_row(row(cache, sequence, h, held + i), cache.stride_col,
                   static_cast<const char*>(from.data) +
                       (h * from.stride_head + i * from.stride_row) * element_,
                   from.stride_col, size, element_);
    };
    copy(a_.k_cache, a_.k, sizes_.head_size);
    copy(a_.v_cache, a_.v, sizes_.value_size);
  }

  // Positions [begin, end) of a sequence to (K, end - begin, size), contiguous.
  void collect(const Tensor4& cache, int64_t sequence, int64_t begin, int64_t end, int64_t size,
               char* to) const {
    const int64_t n = end - begin;
    const auto copy = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        copy_row(to + i * size * element_, 1, row(cache, sequence, i / n, begin + i % n),
                 cache.stride_col, size, element_);
    };
    run_parallel(
        sizes_.kv_heads * n, 1024,
        [](int64_t first, int64_t last, void* context) {
          (*static_cast<decltype(copy)*>(context))(first, last);
        },
        const_cast<void*>(static_cast<const void*>(&copy)));
  }

  // The arguments for `count` sequences from `sequence` on, all with `keys` keys.
  AttentionArgs some_sequences(int64_t sequence, int64_t count, int64_t keys) const {
    AttentionArgs args = sizes_;
    args.batch = count;
    args.keys = keys;
    args.q = skip_sequences(sizes_.q, sequence, element_);
    args.out = skip_sequences(sizes_.out, sequence, element_);
    args.lse = skip_sequences(sizes_.lse, sequence, wide_element_);
    args.lse_low = skip_sequences(sizes_.lse_low, sequence, wide_element_);
    if (sizes_.alibi != nullptr)
      args.alibi = static_cast<const char*>(sizes_.alibi) +
                   sequence * sizes_.alibi_stride_batch * wide_element_;
    return args;
  }

  void attend_contiguous(int64_t sequence, int64_t count) const {
    AttentionArgs args = some_sequences(sequence, count, a_.key_count(sequence));
    args.k = skip_sequences(a_.k_cache, sequence, element_);
    args.v = skip_sequences(a_.v_cache, sequence, element_);
    kernels().attention_forward(args);
  }

  void attend_collected(int64_t sequence) const {
    const int64_t first = a_.first_key(sequence), end = a_.key_count(sequence), n = end - first;
    const Collected c = carve(n, a_.workspace);
    collect(a_.k_cache, sequence, first, end, sizes_.head_size, c.keys);
    collect(a_.v_cache, sequence, first, end, sizes_.value_size, c.values);
    AttentionArgs args = some_sequences(sequence, 1, n);
    const auto contiguous = [&](char* data, int64_t size) {
      return Tensor4{data, sizes_.kv_heads * n * size, n * size, size, 1};
    };
    args.k = contiguous(c.keys, sizes_.head_size);
    args.v = contiguous(c.values, sizes_.value_size);
    kernels().attention_forward(args);
  }

  void attend_pages() const {
    std::vector<int32_t> key_counts(sizes_.batch);
    for (int64_t b = 0; b < sizes_.batch; ++b)
      key_counts[b] = static_cast<int32_t>(a_.key_count(b));
    AttentionArgs args = sizes_;
    args.keys = *std::max_element(key_counts.begin(), key_counts.end());
    args.key_lengths = key_counts.data();
    args.page_table = a_.page_table;
    args.page = a_.page;
    args.table_stride_batch = a_.table_stride_batch;
    args.table_stride_page = a_.table_stride_page;
    args.k = a_.k_cache;
    args.v = a_.v_cache;
    kernels().attention_forward(args);
  }

  const AttentionDecodeArgs& a_;
  const AttentionArgs& sizes_;
  const int64_t element_, wide_element_;  // bytes of a number, and of one of the accumulation type
};

}  // namespace

size_t attention_decode_workspace(const AttentionDecodeArgs& args) {
  return Decode(args).workspace();
}

void attention_decode(const AttentionDecodeArgs& args) { Decode(args).run(); }

}  // namespace llama_fast
