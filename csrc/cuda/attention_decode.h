// Arguments of the decoding kernels, in device memory.
#pragma once

#include "cpu/attention.h"
#include "cuda/launch.h"

namespace llama_fast {
namespace cuda {

struct AttentionDecodeArgs {
  DType dtype;  // bf16 or f16
  int64_t batch, heads, kv_heads, queries, head_size;
  int64_t capacity;     // keys that a sequence can hold
  int64_t pages, page;  // of the cache, and keys of each; contiguous caches: a page a sequence

  // Contiguous rows, each at a multiple of 16 bytes.
  Tensor4 q, k_cache, v_cache, k, v, out;  // k and v are null where nothing is appended
  const int32_t* seqlens;
  int64_t seqlens_stride;
  const int32_t* table;  // null: contiguous caches
  int64_t table_stride_batch, table_stride_page;
  const float* alibi;  // (B or 1, H) contiguous, or null
  int64_t alibi_stride_batch;
  const float* sinks;   // (H), or null
  float* lse;           // (B, H, S) contiguous
  int64_t window_left;  // -1: unlimited
  // The score of a product p, to the base 2: p scale, or softcap tanh(p scale) where softcap is not
  // 0.
  float scale, softcap;

  void set_scale(double product_scale, double product_softcap) {
    constexpr double kLog2E = 1.4426950408889634;
    scale = static_cast<float>(product_softcap > 0 ? product_scale / product_softcap
                                                   : product_scale * kLog2E);
    softcap = static_cast<float>(product_softcap * kLog2E);
  }

  // With several shares: the maximum, sum and sum of values of each share and row.
  float *part_max, *part_sum, *part_out;
};

// Fills out and lse; appends k and v.
void attention_decode(const Queue& queue, const AttentionDecodeArgs& args, int64_t shares);

}  // namespace cuda
}  // namespace llama_fast
