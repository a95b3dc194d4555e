// Attention over a cache of keys and values: tensors to kernel arguments.
#include "glue/attention_decode.h"

#include <torch/csrc/stable/ops.h>

#include "cpu/attention_cache.h"
#include "glue/errors.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

// (B,H,S)
Tensor4 rows_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), 0};
}

// The lengths of the sequences, and the pages that their queries see, lie inside the cache.
void check_lengths(const AttentionDecodeArgs& a, int64_t pages, int64_t capacity) {
  const int64_t max_held = capacity - a.appended();
  for (int64_t b = 0; b < a.attention.batch; ++b) {
    const int64_t count = a.key_count(b), held = count - a.appended();
    check_value(held >= 0 && held <= max_held, "cache_seqlens: expected lengths in [0, ", max_held,
                "], got ", held, " at position ", b);
    if (a.page_table == nullptr) continue;
    for (int64_t t = a.first_key(b) / a.page * a.page; t < count; t += a.page) {
      const int64_t page = a.page_of(b, t);
      check_value(page >= 0 && page < pages, "page_table: expected pages in [0, ", pages, "), got ",
                  page, " at position (", b, ", ", t / a.page, ")");
    }
  }
}

}  // namespace

std::tuple<Tensor, Tensor> attention_decode(Tensor q, Tensor k_cache, Tensor v_cache,
                                            OptionalTensor k, OptionalTensor v,
                                            Tensor cache_seqlens, OptionalTensor page_table,
                                            OptionalTensor alibi_slopes, OptionalTensor sinks,
                                            int64_t window_left, double scale, double softcap) {
  expect_decode_arguments(q, k_cache, v_cache, k, v, cache_seqlens, page_table, alibi_slopes,
                          sinks);
  expect_valid_sizes(q, k_cache, v_cache);
  const ScalarType type = q.scalar_type(), wide = accumulation_type(type);

  AttentionDecodeArgs a{};
  AttentionArgs& attention = a.attention;
  attention.dtype = dtype_of(q);
  attention.batch = q.size(0);
  attention.heads = q.size(1);
  attention.kv_heads = k_cache.size(1);
  attention.queries = q.size(2);
  attention.head_size = q.size(3);
  attention.value_size = v_cache.size(3);
  attention.causal = true;
  attention.window_left = window_left;
  attention.window_right = -1;
  attention.scale = scale;
  attention.softcap = softcap;
  if (sinks.has_value()) {
    *sinks = contiguous_as(*sinks, wide);
    attention.sinks = sinks->data_ptr();
  }
  if (alibi_slopes.has_value()) {
    *alibi_slopes = contiguous_as(*alibi_slopes, wide);
    attention.alibi = alibi_slopes->data_ptr();
    attention.alibi_stride_head = 1;
    attention.alibi_stride_batch = alibi_slopes->size(0) == 1 ? 0 : attention.heads;
  }

  a.k_cache = heads_of(k_cache);
  a.v_cache = heads_of(v_cache);
  a.page = k_cache.size(2);
  int64_t capacity = a.page;
  a.cache_seqlens = static_cast<const int32_t*>(cache_seqlens.data_ptr());
  a.cache_seqlens_stride = cache_seqlens.stride(0);
  if (page_table.has_value()) {
    a.page_table = static_cast<const int32_t*>(page_table->data_ptr());
    a.table_stride_batch = page_table->stride(0);
    a.table_stride_page = page_table->stride(1);
    capacity *= page_table->size(1);
  }
  if (k.has_value()) {
    a.k = heads_of(*k);
    a.v = heads_of(*v);
  }
  a.appends = k.has_value();
  check_lengths(a, k_cache.size(0), capacity);

  Tensor out = new_like_heads(q, type, attention.value_size);
  Tensor lse = new_tensor(q, q.sizes().data(), 3, wide),
         lse_low = new_tensor(q, q.sizes().data(), 3, wide);
  attention.q = heads_of(q);
  attention.out = heads_of(out);
  attention.lse = rows_of(lse);
  attention.lse_low = rows_of(lse_low);
  const WorkingMemory workspace(q, attention_decode_workspace(a));
  a.workspace = workspace.data();
  attention_decode(a);
  return {out, lse};
}

}  // namespace llama_fast
