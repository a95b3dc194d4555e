// Attention over a cache of keys and values: appends the new ones, then calls
// the attention kernels, which read a contiguous cache, and most paged ones,
// where they lie. The keys of other paged ones are collected first, a sequence
// at a time.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

// (B,H,S,D), or one sequence of it.
Tensor4 heads_of(const Tensor& t, int64_t batch = 0) {
  char* data = static_cast<char*>(t.data_ptr()) + batch * t.stride(0) * element_size(dtype_of(t));
  return {data, t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// (B,H,S), or one sequence of it.
Tensor4 rows_of(const Tensor& t, int64_t batch = 0) {
  char* data = static_cast<char*>(t.data_ptr()) + batch * t.stride(0) * element_size(dtype_of(t));
  return {data, t.stride(0), t.stride(1), t.stride(2), 0};
}

void copy_row(char* to, int64_t to_stride, const char* from, int64_t from_stride, int64_t n,
              int64_t element) {
  if (to_stride == 1 && from_stride == 1) {
    std::memcpy(to, from, n * element);
    return;
  }
  for (int64_t c = 0; c < n; ++c)
    std::memcpy(to + c * to_stride * element, from + c * from_stride * element, element);
}

// The keys or the values of a cache, by sequence and position.
struct Cache {
  Tensor4 pages;  // (P,K,page,D); contiguous caches: (B,K,T,D), a page a sequence
  int64_t kv_heads, page, size, element;
  const int32_t* table = nullptr;
  int64_t table_stride_batch = 0, table_stride_page = 0;

  Cache(const Tensor& cache, const OptionalTensor& page_table)
      : pages(heads_of(cache)),
        kv_heads(cache.size(1)),
        page(cache.size(2)),
        size(cache.size(3)),
        element(element_size(dtype_of(cache))) {
    if (!page_table.has_value()) return;
    table = static_cast<const int32_t*>(page_table->data_ptr());
    table_stride_batch = page_table->stride(0);
    table_stride_page = page_table->stride(1);
  }

  int64_t page_of(int64_t batch, int64_t position) const {
    return table == nullptr
               ? batch
               : table[batch * table_stride_batch + position / page * table_stride_page];
  }
  char* row(int64_t batch, int64_t head, int64_t position) const {
    const int64_t in_page = table == nullptr ? position : position % page;
    return static_cast<char*>(pages.data) +
           (page_of(batch, position) * pages.stride_batch + head * pages.stride_head +
            in_page * pages.stride_row) *
               element;
  }

  // Whether the kernels can read its pages.
  bool readable() const {
    return table != nullptr && page % kPageUnit == 0 && pages.stride_col == 1;
  }

  void append(const Tensor& added, int64_t batch, int64_t held) const {
    const Tensor4 from = heads_of(added, batch);
    for (int64_t h = 0; h < kv_heads; ++h)
      for (int64_t i = 0; i < added.size(2); ++i)
        copy_row(row(batch, h, held + i), pages.stride_col,
                 static_cast<const char*>(from.data) +
                     (h * from.stride_head + i * from.stride_row) * element,
                 from.stride_col, size, element);
  }

  // Positions [begin, end) of a sequence, (1,K,end - begin,size).
  Tensor collect(int64_t batch, int64_t begin, int64_t end, ScalarType type) const {
    const int64_t n = end - begin;
    Tensor out = new_tensor({1, kv_heads, n, size}, type);
    char* to = static_cast<char*>(out.data_ptr());
    const auto copy = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        copy_row(to + i * size * element, 1, row(batch, i / n, begin + i % n), pages.stride_col,
                 size, element);
    };
    run_parallel(
        kv_heads * n, 1024,
        [](int64_t first, int64_t last, void* context) {
          (*static_cast<decltype(copy)*>(context))(first, last);
        },
        const_cast<void*>(static_cast<const void*>(&copy)));
    return out;
  }
};

// Everything that the loops read or write lies inside its tensor.
void check(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& k,
           const OptionalTensor& v, const Tensor& seqlens, const OptionalTensor& table,
           int64_t window_left) {
  const auto fits = [&](bool ok) {
    STD_TORCH_CHECK(ok,
                    "llama_fast::attention_decode: shapes or dtypes of the "
                    "arguments do not fit");
  };
  fits(q.dim() == 4 && k_cache.dim() == 4 && v_cache.dim() == 4 && seqlens.dim() == 1);
  fits(dtype_of(k_cache) == dtype_of(q) && dtype_of(v_cache) == dtype_of(q));
  expect_countable(q, k_cache, v_cache);
  const int64_t batch = q.size(0), queries = q.size(2), kv_heads = k_cache.size(1);
  fits(k_cache.size(3) == q.size(3));
  for (int64_t d = 0; d < 3; ++d) fits(k_cache.size(d) == v_cache.size(d));
  fits(kv_heads > 0 ? q.size(1) % kv_heads == 0 : q.size(1) == 0);
  fits(seqlens.size(0) == batch && seqlens.scalar_type() == ScalarType::Int);
  fits(k.has_value() == v.has_value());
  if (k.has_value())
    for (const auto& [added, cache] : {std::pair(*k, k_cache), std::pair(*v, v_cache)}) {
      fits(added.dim() == 4 && dtype_of(added) == dtype_of(q));
      fits(added.size(0) == batch && added.size(1) == kv_heads && added.size(2) == queries &&
           added.size(3) == cache.size(3));
    }
  int64_t capacity = k_cache.size(2);
  if (table.has_value()) {
    fits(table->dim() == 2 && table->size(0) == batch && table->scalar_type() == ScalarType::Int);
    capacity *= table->size(1);
  } else {
    fits(k_cache.size(0) == batch);
  }
  const int64_t most = capacity - (k.has_value() ? queries : 0);
  const Cache cache(k_cache, table);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t held = static_cast<int32_t*>(seqlens.data_ptr())[b * seqlens.stride(0)];
    STD_TORCH_CHECK(held >= 0 && held <= most,
                    "ValueError: cache_seqlens: expected lengths in [0, ", most, "], got ", held,
                    " at position ", b);
    if (!table.has_value()) continue;
    const int64_t total = held + (k.has_value() ? queries : 0);
    const int64_t first = window_left < 0 ? 0 : std::max<int64_t>(0, total - queries - window_left);
    for (int64_t t = first / cache.page * cache.page; t < total; t += cache.page) {
      const int64_t page = cache.page_of(b, t);
      STD_TORCH_CHECK(page >= 0 && page < k_cache.size(0),
                      "ValueError: page_table: expected pages in [0, ", k_cache.size(0), "), got ",
                      page, " at position (", b, ", ", t / cache.page, ")");
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> attention_decode(Tensor q, Tensor k_cache, Tensor v_cache,
                                            OptionalTensor k, OptionalTensor v,
                                            Tensor cache_seqlens, OptionalTensor page_table,
                                            OptionalTensor alibi_slopes, OptionalTensor sinks,
                                            int64_t window_left, double scale, double softcap) {
  check(q, k_cache, v_cache, k, v, cache_seqlens, page_table, window_left);
  const int64_t batch = q.size(0), queries = q.size(2), added = k.has_value() ? queries : 0;
  const ScalarType type = q.scalar_type(), wide = wide_type(type);
  Tensor out = new_like_heads(q, type, v_cache.size(3));
  Tensor lse = new_tensor(q.sizes().data(), 3, wide),
         lse_low = new_tensor(q.sizes().data(), 3, wide);

  AttentionArgs args{};
  args.dtype = dtype_of(q);
  args.heads = q.size(1);
  args.kv_heads = k_cache.size(1);
  args.queries = queries;
  args.head_size = q.size(3);
  args.value_size = v_cache.size(3);
  args.causal = true;
  args.window_left = window_left;
  args.window_right = -1;
  args.scale = scale;
  args.softcap = softcap;
  if (sinks.has_value()) {
    STD_TORCH_CHECK(sinks->dim() == 1 && sinks->size(0) == args.heads,
                    "llama_fast::attention_decode: sinks must be (H,)");
    *sinks = contiguous_as(*sinks, wide);
    args.sinks = sinks->data_ptr();
  }
  if (alibi_slopes.has_value()) {
    STD_TORCH_CHECK(alibi_slopes->dim() == 2 && alibi_slopes->size(1) == args.heads &&
                        (alibi_slopes->size(0) == 1 || alibi_slopes->size(0) == batch),
                    "llama_fast::attention_decode: alibi_slopes must be (1,H) or (B,H)");
    *alibi_slopes = contiguous_as(*alibi_slopes, wide);
    args.alibi_stride_head = 1;
    args.alibi_stride_batch = alibi_slopes->size(0) == 1 ? 0 : args.heads;
  }

  const Cache keys(k_cache, page_table), values(v_cache, page_table);
  const auto total = [&](int64_t b) {
    return static_cast<int32_t*>(cache_seqlens.data_ptr())[b * cache_seqlens.stride(0)] + added;
  };
  const auto attend = [&](int64_t b,
                          int64_t n) {  // sequences [b, b + n), of one length
    args.batch = n;
    args.keys = total(b);
    args.q = heads_of(q, b);
    args.out = heads_of(out, b);
    args.lse = rows_of(lse, b);
    args.lse_low = rows_of(lse_low, b);
    if (alibi_slopes.has_value())
      args.alibi = static_cast<char*>(alibi_slopes->data_ptr()) +
                   b * args.alibi_stride_batch * element_size(dtype_of(*alibi_slopes));
    if (!page_table.has_value()) {
      args.k = heads_of(k_cache, b);
      args.v = heads_of(v_cache, b);
      kernels().attention_forward(args);
      return;
    }
    // Pages that no query sees any more may be gone.
    const int64_t first =
        window_left < 0 ? 0 : std::max<int64_t>(0, args.keys - queries - window_left);
    const Tensor some_keys = keys.collect(b, first, args.keys, type);
    const Tensor some_values = values.collect(b, first, args.keys, type);
    args.keys -= first;
    args.k = heads_of(some_keys);
    args.v = heads_of(some_values);
    kernels().attention_forward(args);
  };
  for (int64_t b = 0; b < batch && added > 0; ++b) {
    const int64_t held = total(b) - added;
    keys.append(*k, b, held);
    values.append(*v, b, held);
  }
  const bool few = args.kv_heads > 0 && args.heads / args.kv_heads * queries <= kFewRows;
  if (few && keys.readable() && values.readable() && window_left < 0 && batch > 0) {
    std::vector<int32_t> lengths(batch);
    for (int64_t b = 0; b < batch; ++b) lengths[b] = static_cast<int32_t>(total(b));
    args.batch = batch;
    args.keys = *std::max_element(lengths.begin(), lengths.end());
    args.key_lengths = lengths.data();
    args.page_table = keys.table;
    args.page = keys.page;
    args.table_stride_batch = keys.table_stride_batch;
    args.table_stride_page = keys.table_stride_page;
    args.q = heads_of(q);
    args.k = keys.pages;
    args.v = values.pages;
    args.out = heads_of(out);
    args.lse = rows_of(lse);
    args.lse_low = rows_of(lse_low);
    if (alibi_slopes.has_value()) args.alibi = alibi_slopes->data_ptr();
    kernels().attention_forward(args);
    return {out, lse};
  }
  for (int64_t b = 0, n; b < batch; b += n) {
    for (n = 1; !page_table.has_value() && b + n < batch && total(b + n) == total(b);) ++n;
    attend(b, n);
  }
  return {out, lse};
}

}  // namespace llama_fast
