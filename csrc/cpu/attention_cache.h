// Attention over a cache of keys and values: arguments of attention_decode().
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/attention.h"

namespace llama_fast {

struct AttentionDecodeArgs {
  // Sizes, q, out, lse, lse_low and options for all sequences. attention_decode() sets k, v, `keys`
  // and the fields that describe pages.
  AttentionArgs attention;

  Tensor4 k_cache, v_cache;      // (B, K, T, D); with a page table (P, K, page, D)
  int64_t page;                  // keys per page; T without a page table
  const int32_t* cache_seqlens;  // (B): number of cached keys
  int64_t cache_seqlens_stride;
  const int32_t* page_table;  // (B, pages of a sequence), or null
  int64_t table_stride_batch, table_stride_page;

  bool appends;  // whether to append k and v (B, K, S, D), one key per query
  Tensor4 k, v;

  void* workspace;  // attention_decode_workspace() bytes, 64-byte aligned

  int64_t appended() const { return appends ? attention.queries : 0; }

  // Number of keys of a sequence, including appended ones.
  int64_t key_count(int64_t sequence) const {
    return cache_seqlens[sequence * cache_seqlens_stride] + appended();
  }

  // The first key of a sequence that a query sees. Pages before it may have been reused.
  int64_t first_key(int64_t sequence) const {
    if (attention.window_left < 0) return 0;
    const int64_t first = key_count(sequence) - attention.queries - attention.window_left;
    return first > 0 ? first : 0;
  }

  // The page of the cache that holds a position of a sequence.
  int64_t page_of(int64_t sequence, int64_t position) const {
    if (page_table == nullptr) return sequence;
    return page_table[sequence * table_stride_batch + position / page * table_stride_page];
  }
};

// Bytes of working memory that these arguments need; reads no key.
size_t attention_decode_workspace(const AttentionDecodeArgs& args);

// Appends k and v to the caches, then fills out, lse and lse_low.
void attention_decode(const AttentionDecodeArgs& args);

}  // namespace llama_fast
