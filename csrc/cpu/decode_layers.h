// Arguments of decode_layers: all blocks of a Llama model for one new token of each of a few
// sequences whose keys and values are in pages.
//
// B sequences, E model width, H query heads, K key-value heads, D head size, F width of the
// feed-forward layer. All tensors have one dtype but cos and sin, which have the accumulation type
// (float; double for f64).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/linear.h"
#include "cpu/types.h"

namespace llama_fast {

struct DecodeLayerWeights {
  const void* attention_norm;  // (E)
  LinearWeight q, k, v;        // (H D, E), (K D, E), (K D, E)
  LinearWeight attention_out;  // (E, H D)
  const void* mlp_norm;        // (E)
  LinearWeight gate, up;       // (F, E)
  LinearWeight down;           // (E, F)
};

struct DecodeLayersArgs {
  DType dtype;
  int64_t batch, model_size, heads, kv_heads, head_size, mlp_size;
  double eps;                         // of the norms
  int64_t layers;                     // blocks
  const DecodeLayerWeights* weights;  // of each block
  const void* final_norm;             // (E)

  const void* input;             // (B, E) contiguous
  const void *cos, *sin;         // (B, D / 2) contiguous
  void *k_cache, *v_cache;       // (layers, slots, K, D) contiguous
  int64_t slots;                 // pages times page
  int64_t page;                  // keys of a page
  const int32_t* cache_seqlens;  // (B): number of keys before the new one
  const int32_t* page_table;     // (B, pages of a sequence)
  int64_t page_table_stride;     // from sequence to sequence

  void* out;        // (B, E) contiguous
  void* workspace;  // decode_layers_workspace() bytes, 64-byte aligned

  // A general matrix product, for more rows than Kernels::linear_rows.
  void (*linear_of_many_rows)(const LinearArgs&);
};

// Bytes of working memory that these arguments need; reads sizes and dtype only.
size_t decode_layers_workspace(const DecodeLayersArgs& args);

// Fills out, and writes the new keys and values into the caches.
void decode_layers(const DecodeLayersArgs& args);

}  // namespace llama_fast
