// Arguments of the attention kernels: plain pointers, strides and numbers.
#pragma once

#include <cstdint>

#include "constants.h"
#include "cpu/types.h"

namespace llama_fast {

// A tensor (B, H, S, D) of some element type; strides count elements.
struct Tensor4 {
  void* data = nullptr;
  int64_t stride_batch = 0, stride_head = 0, stride_row = 0, stride_col = 0;
};

struct AttentionArgs {
  DType dtype;
  // Packed: batch counts the sequences, queries/keys are the longest lengths,
  // and cu_queries/cu_keys (batch + 1) say where in the packed rows each
  // sequence starts.
  int64_t batch, heads, kv_heads, queries, keys, head_size, value_size;
  const int64_t* cu_queries = nullptr;
  const int64_t* cu_keys = nullptr;

  // Paged keys, for at most kFewRows rows and without a window: k and v are (P,
  // K, page, D), and key t of a sequence is row t % page of the page that its
  // row of the table names at t / page. Sequence b has key_lengths[b] keys;
  // `keys` is the largest of them.
  const int32_t* page_table = nullptr;
  const int32_t* key_lengths = nullptr;
  int64_t page = 0, table_stride_batch = 0, table_stride_page = 0;

  Tensor4 q, k, v, out;
  // (B, H, S), float or double: the log of the softmax's denominator, and what
  // rounding took from it. The backward needs both: an error of lse would scale
  // a whole row of probabilities.
  Tensor4 lse, lse_low;

  bool causal;
  int64_t window_left, window_right;  // -1: unlimited
  double scale, softcap;              // softcap 0: none
  double dropout_p;
  uint64_t dropout_seed;

  // Optional inputs; data is null if absent. A stride of 0 broadcasts.
  Tensor4 bias;  // (B, H, S, T), of type bias_dtype or bool
  bool bias_is_bool = false;
  DType bias_dtype = DType::f32;
  const uint8_t* padding = nullptr;  // key_padding_mask (B, T), nonzero: ignored
  int64_t padding_stride_batch = 0, padding_stride_key = 0;
  const void* alibi = nullptr;  // slopes (B, H), float or double as computed in
  int64_t alibi_stride_batch = 0, alibi_stride_head = 0;
  const void* sinks = nullptr;  // (H), float or double as computed in, contiguous

  // Backward. Outputs with null data are not computed.
  Tensor4 grad_out;
  Tensor4 grad_lse;  // (B, H, S), float or double; data null when absent
  Tensor4 delta;     // (B, H, S), float or double: working space of the backward
  Tensor4 grad_q, grad_k, grad_v;
  Tensor4 grad_bias;             // (B, H, S or 1, T or 1), zeroed by the caller; double
                                 // where a dimension is 1 (a long sum), else float or
                                 // double as computed in
  double* grad_alibi = nullptr;  // (B, H) contiguous, zeroed by the caller
  double* grad_sinks = nullptr;  // (B, H) contiguous
};

}  // namespace llama_fast
