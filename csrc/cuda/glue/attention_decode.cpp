// Attention over a cache of keys and values on a GPU: tensors to kernel arguments. The kernels
// check lengths and pages.
#include "glue/attention_decode.h"

#include "cuda/attention_decode.h"
#include "cuda/attention_decode_plan.h"
#include "cuda/glue/device_scope.h"
#include "cuda/glue/ops.h"

namespace llama_fast {
namespace cuda {
namespace {

// Whether every row is contiguous and begins at a multiple of 16 bytes.
bool aligned(const Tensor& t) {
  bool ok = t.size(3) <= 1 || t.stride(3) == 1;
  ok = ok && reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
  for (int64_t d = 0; d < 3; ++d)
    ok = ok && (t.size(d) <= 1 || t.stride(d) * element_size(dtype_of(t)) % 16 == 0);
  return ok;
}

Tensor with_aligned_rows(const Tensor& t) {
  if (aligned(t)) return t;
  Tensor copy = new_tensor(t, t.sizes().data(), t.dim(), t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

void expect_servable(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache) {
  STD_TORCH_CHECK(k_cache.size(0) <= INT32_MAX && k_cache.size(2) <= INT32_MAX,
                  "llama_fast::attention_decode: k_cache: expected sizes below 2^31");
  const char* refusal =
      decode_refusal(dtype_of(q), q.size(3), v_cache.size(3), aligned(k_cache) && aligned(v_cache));
  STD_TORCH_CHECK(refusal == nullptr, "llama_fast::attention_decode: CUDA kernel: ", refusal);
}

}  // namespace

std::tuple<Tensor, Tensor> attention_decode(Tensor q, Tensor k_cache, Tensor v_cache,
                                            OptionalTensor k, OptionalTensor v,
                                            Tensor cache_seqlens, OptionalTensor page_table,
                                            OptionalTensor alibi_slopes, OptionalTensor sinks,
                                            int64_t window_left, double scale, double softcap) {
  const DeviceScope device(q, k_cache, v_cache, k, v, cache_seqlens, page_table, alibi_slopes,
                           sinks);
  expect_decode_arguments(q, k_cache, v_cache, k, v, cache_seqlens, page_table, alibi_slopes,
                          sinks);
  expect_servable(q, k_cache, v_cache);
  AttentionDecodeArgs a{};
  a.dtype = dtype_of(q);
  a.batch = q.size(0);
  a.heads = q.size(1);
  a.kv_heads = k_cache.size(1);
  a.queries = q.size(2);
  a.head_size = q.size(3);
  a.pages = k_cache.size(0);
  a.page = k_cache.size(2);
  // The kernels count positions in 32 bits, some steps beyond the last one.
  a.capacity = std::min<int64_t>(INT32_MAX - (1 << 20),
                                 page_table.has_value() ? a.page * page_table->size(1) : a.page);
  Tensor out = new_like_heads(q, q.scalar_type());
  Tensor lse = new_tensor(q, q.sizes().data(), 3, ScalarType::Float);
  if (lse.numel() == 0) return {out, lse};

  q = with_aligned_rows(q);
  a.q = heads_of(q);
  a.out = heads_of(out);
  a.lse = static_cast<float*>(lse.data_ptr());
  a.k_cache = heads_of(k_cache);
  a.v_cache = heads_of(v_cache);
  if (k.has_value()) {
    *k = with_aligned_rows(*k);
    *v = with_aligned_rows(*v);
    a.k = heads_of(*k);
    a.v = heads_of(*v);
  }
  a.seqlens = static_cast<const int32_t*>(cache_seqlens.data_ptr());
  a.seqlens_stride = cache_seqlens.stride(0);
  if (page_table.has_value()) {
    a.table = static_cast<const int32_t*>(page_table->data_ptr());
    a.table_stride_batch = page_table->stride(0);
    a.table_stride_page = page_table->stride(1);
  }
  if (alibi_slopes.has_value()) {
    *alibi_slopes = contiguous_as(*alibi_slopes, ScalarType::Float);
    a.alibi = static_cast<const float*>(alibi_slopes->data_ptr());
    a.alibi_stride_batch = alibi_slopes->size(0) == 1 ? 0 : a.heads;
  }
  if (sinks.has_value()) {
    *sinks = contiguous_as(*sinks, ScalarType::Float);
    a.sinks = static_cast<const float*>(sinks->data_ptr());
  }
  // A window as wide as the cache has no effect; without it, the kernels can compute in 32 bits.
  const bool limits = window_left >= 0 && window_left < a.capacity + a.queries;
  a.window_left = limits ? window_left : -1;
  a.set_scale(scale, softcap);

  const int64_t units = a.batch * a.kv_heads, rows = a.heads / a.kv_heads * a.queries;
  const int64_t keys = limits ? std::min(a.capacity, a.queries + window_left) : a.capacity;
  const DecodePlan plan = decode_plan(gpu_of(device.queue()), a.head_size, units, rows, keys);
  const int64_t parts = plan.shares > 1 ? units * plan.shares * rows : 0;
  Tensor part = new_tensor(q, {parts * (a.head_size + 2)}, ScalarType::Float);
  a.part_out = static_cast<float*>(part.data_ptr());
  a.part_max = a.part_out + parts * a.head_size;
  a.part_sum = a.part_max + parts;
  attention_decode(device.queue(), a, plan.shares);
  return {out, lse};
}

}  // namespace cuda
}  // namespace llama_fast
