// Argument checks that the CPU and the CUDA operator of attention_decode share.
#pragma once

#include "cpu/attention.h"
#include "glue/tensors.h"

namespace llama_fast {

// (B,H,S,D)
inline Tensor4 heads_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// ops/attention_decode.py checked shapes and dtypes; this only keeps a direct call of the
// operator from reading or writing outside its tensors.
inline void expect_decode_arguments(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                                    const OptionalTensor& k, const OptionalTensor& v,
                                    const Tensor& cache_seqlens, const OptionalTensor& page_table,
                                    const OptionalTensor& alibi_slopes,
                                    const OptionalTensor& sinks) {
  const auto expect = [](bool ok, const char* what) {
    STD_TORCH_CHECK(ok, "llama_fast::attention_decode: ", what);
  };
  expect(q.dim() == 4, "q: expected shape (B,H,S,D)");
  expect(k_cache.dim() == 4 && v_cache.dim() == 4, "k_cache, v_cache: expected 4 dimensions");
  expect(dtype_of(k_cache) == dtype_of(q) && dtype_of(v_cache) == dtype_of(q),
         "k_cache, v_cache: expected the dtype of q");
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2);
  const int64_t kv_heads = k_cache.size(1);
  expect(k_cache.size(3) == q.size(3), "k_cache: expected the head size of q");
  for (int64_t d = 0; d < 3; ++d)
    expect(k_cache.size(d) == v_cache.size(d), "v_cache: expected the shape of k_cache");
  expect(kv_heads > 0 ? heads % kv_heads == 0 : heads == 0,
         "q: expected a multiple of the cache's number of heads");
  expect(cache_seqlens.dim() == 1 && cache_seqlens.size(0) == batch &&
             cache_seqlens.scalar_type() == ScalarType::Int,
         "cache_seqlens: expected int32 of shape (B,)");
  expect(k.has_value() == v.has_value(), "k, v: expected both or neither");
  const auto expect_added = [&](const Tensor& added, const Tensor& cache) {
    expect(added.dim() == 4 && dtype_of(added) == dtype_of(q) && added.size(0) == batch &&
               added.size(1) == kv_heads && added.size(2) == queries &&
               added.size(3) == cache.size(3),
           "k, v: expected shape (B,K,S,D) and the dtype of q");
  };
  if (k.has_value()) {
    expect_added(*k, k_cache);
    expect_added(*v, v_cache);
  }
  if (page_table.has_value()) {
    expect(page_table->dim() == 2 && page_table->size(0) == batch &&
               page_table->scalar_type() == ScalarType::Int,
           "page_table: expected int32 of shape (B,pages)");
  } else {
    expect(k_cache.size(0) == batch, "k_cache: expected the batch size of q");
  }
  if (alibi_slopes.has_value())
    expect(alibi_slopes->dim() == 2 && alibi_slopes->size(1) == heads &&
               (alibi_slopes->size(0) == 1 || alibi_slopes->size(0) == batch),
           "alibi_slopes: expected shape (1,H) or (B,H)");
  if (sinks.has_value())
    expect(sinks->dim() == 1 && sinks->size(0) == heads, "sinks: expected shape (H,)");
}

}  // namespace llama_fast
