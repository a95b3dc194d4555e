// All blocks of a Llama model for one new token of each of a few sequences: the kernels that
// llama_fast/models/llama.py calls, in the same order and with the same roundings, but without the
// time that Python and the dispatcher take between them. That is about 10 µs a call and 14 calls a
// block: half of the time of a small model.
#include "cpu/decode_layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/scratch.h"

namespace llama_fast {
namespace {

// Where intermediate results lie.
struct Intermediates {
  int32_t* key_counts;  // (B): keys of each sequence, the new one included
  char* rstd;           // (B), accumulation type
  char* qkv;            // (B, (H + 2 K) D): queries, keys, values
  char* attended;       // (B, H D)
  char *lse, *lse_low;  // (B, H), accumulation type
  char* gate_up;        // (B, 2 F)
  char* activated;      // (B, F): silu(gate) * up
  char* block_output;   // (B, E): what a block adds to the residual stream
  char* residual[2];    // (B, E): the residual stream, in turns

  size_t carve(const DecodeLayersArgs& a, void* base) {
    Carver memory(base);
    const int64_t element = element_size(a.dtype), wide = a.dtype == DType::f64 ? 8 : 4;
    const int64_t B = a.batch, HD = a.heads * a.head_size, KD = a.kv_heads * a.head_size;
    key_counts = memory.take<int32_t>(B);
    rstd = memory.take<char>(B * wide);
    qkv = memory.take<char>(B * (HD + 2 * KD) * element);
    attended = memory.take<char>(B * HD * element);
    lse = memory.take<char>(B * a.heads * wide);
    lse_low = memory.take<char>(B * a.heads * wide);
    gate_up = memory.take<char>(B * 2 * a.mlp_size * element);
    activated = memory.take<char>(B * a.mlp_size * element);
    block_output = memory.take<char>(B * a.model_size * element);
    for (char*& sum : residual) sum = memory.take<char>(B * a.model_size * element);
    return memory.used();
  }
};

class Decoder {
 public:
  explicit Decoder(const DecodeLayersArgs& args) : a_(args) {
    work_.carve(a_, a_.workspace);
    for (int64_t b = 0; b < a_.batch; ++b) work_.key_counts[b] = a_.cache_seqlens[b] + 1;
    max_keys_ = *std::max_element(work_.key_counts, work_.key_counts + a_.batch);
  }

  // Every norm writes its result to `out`, which holds that of the last one in the end.
  void run() {
    const void* x = a_.input;
    const int64_t layer_bytes = bytes(a_.slots * KD_);
    for (int64_t layer = 0; layer < a_.layers; ++layer) {
      const DecodeLayerWeights& w = a_.weights[layer];
      if (layer == 0) {
        norm(x, nullptr, w.attention_norm, nullptr);
      } else {
        x = add_and_norm(x, w.attention_norm);
      }
      linear(a_.out, a_.model_size, {w.q, w.k, w.v}, work_.qkv);
      rotate_queries_and_keys();
      char* const keys = static_cast<char*>(a_.k_cache) + layer * layer_bytes;
      char* const values = static_cast<char*>(a_.v_cache) + layer * layer_bytes;
      append(keys, values);
      attend(keys, values);
      linear(work_.attended, HD_, {w.attention_out}, work_.block_output);
      x = add_and_norm(x, w.mlp_norm);
      linear(a_.out, a_.model_size, {w.gate, w.up}, work_.gate_up);
      activate();
      linear(work_.activated, a_.mlp_size, {w.down}, work_.block_output);
    }
    add_and_norm(x, a_.final_norm);
  }

 private:
  int64_t bytes(int64_t elements) const { return elements * element_size(a_.dtype); }

  RowShape row_shape() const {
    RowShape shape;
    shape.dims = 1;
    shape.sizes[0] = a_.batch;
    return shape;
  }
  RowTensor rows(const void* data, int64_t stride) const {
    return {const_cast<void*>(data), a_.dtype, {stride}};
  }

  // out = norm(x). With a residual: sum = x + residual, out = norm(sum).
  void norm(const void* x, const void* residual, const void* weight, void* sum) {
    RmsNormArgs args{};
    args.shape = row_shape();
    args.rows = a_.batch;
    args.features = a_.model_size;
    args.eps = a_.eps;
    args.weight = weight;
    args.weight_dtype = a_.dtype;
    args.rstd = work_.rstd;
    args.input = rows(x, a_.model_size);
    args.y = rows(a_.out, a_.model_size);
    if (residual != nullptr) {
      args.residual = rows(residual, a_.model_size);
      args.x = rows(sum, a_.model_size);
    }
    kernels().rms_norm_forward(args);
  }

  // Adds the output of a block to the residual stream x, and returns the sum; out = norm(sum).
  const void* add_and_norm(const void* x, const void* weight) {
    void* const sum = work_.residual[sums_++ % 2];
    norm(work_.block_output, x, weight, sum);
    return sum;
  }

  // out = input times each of the weights, side by side.
  void linear(const void* input, int64_t inner, std::initializer_list<LinearWeight> weights,
              void* out) {
    LinearArgs args{};
    args.dtype = a_.dtype;
    args.rows = a_.batch;
    args.inner = inner;
    args.input = input;
    args.count = static_cast<int>(weights.size());
    std::copy(weights.begin(), weights.end(), args.weights);
    args.out = out;
    const bool few = a_.batch <= kernels().linear_rows(a_.dtype);
    (few ? kernels().linear : a_.linear_of_many_rows)(args);
  }

  // Rotary position embedding of queries and keys, in place.
  void rotate_queries_and_keys() {
    RopeArgs args{};
    args.dtype = a_.dtype;
    args.batch = 1;
    args.positions = a_.batch;
    args.pairs = a_.head_size / 2;
    const auto heads = [&](int64_t column, int64_t count) -> RopeHeads {
      void* const data = work_.qkv + bytes(column);
      return {count, data, data, {0, a_.head_size, qkv_stride_}, {0, a_.head_size, qkv_stride_}};
    };
    args.q = heads(0, a_.heads);
    args.k = heads(HD_, a_.kv_heads);
    args.cos = a_.cos;
    args.sin = a_.sin;
    args.cos_strides[1] = args.sin_strides[1] = args.pairs;
    kernels().rope(args);
  }

  // Stores the new keys and values of a layer in its cache.
  void append(char* keys, char* values) {
    for (int64_t b = 0; b < a_.batch; ++b) {
      const int64_t position = a_.cache_seqlens[b];
      const int64_t page = a_.page_table[b * a_.page_table_stride + position / a_.page];
      const int64_t slot = page * a_.page + position % a_.page;
      const char* const added = work_.qkv + bytes(b * qkv_stride_ + HD_);
      std::memcpy(keys + bytes(slot * KD_), added, bytes(KD_));
      std::memcpy(values + bytes(slot * KD_), added + bytes(KD_), bytes(KD_));
    }
  }

  // attended = attention of the new queries over all keys.
  void attend(char* keys, char* values) {
    AttentionArgs args{};
    args.dtype = a_.dtype;
    args.batch = a_.batch;
    args.heads = a_.heads;
    args.kv_heads = a_.kv_heads;
    args.queries = 1;
    args.keys = max_keys_;
    args.head_size = args.value_size = a_.head_size;
    args.causal = true;
    args.window_left = args.window_right = -1;
    args.scale = 1 / std::sqrt(static_cast<double>(a_.head_size));
    args.page_table = a_.page_table;
    args.table_stride_batch = a_.page_table_stride;
    args.table_stride_page = 1;
    args.page = a_.page;
    args.key_lengths = work_.key_counts;
    args.q = {work_.qkv, qkv_stride_, a_.head_size, 0, 1};
    args.k = {keys, a_.page * KD_, a_.head_size, KD_, 1};
    args.v = {values, a_.page * KD_, a_.head_size, KD_, 1};
    args.out = {work_.attended, HD_, a_.head_size, 0, 1};
    args.lse = {work_.lse, a_.heads, 1, 0, 0};
    args.lse_low = {work_.lse_low, a_.heads, 1, 0, 0};
    kernels().attention_forward(args);
  }

  // activated = silu(gate) * up
  void activate() {
    SwigluArgs args{};
    args.shape = row_shape();
    args.rows = a_.batch;
    args.columns = a_.mlp_size;
    args.gate = rows(work_.gate_up, 2 * a_.mlp_size);
    args.up = rows(work_.gate_up + bytes(a_.mlp_size), 2 * a_.mlp_size);
    args.out = rows(work_.activated, a_.mlp_size);
    kernels().swiglu_forward(args);
  }

  const DecodeLayersArgs& a_;
  const int64_t HD_ = a_.heads * a_.head_size, KD_ = a_.kv_heads * a_.head_size;
  const int64_t qkv_stride_ = HD_ + 2 * KD_;
  Intermediates work_{};
  int64_t max_keys_ = 0;
  int sums_ = 0;
};

}  // namespace

size_t decode_layers_workspace(const DecodeLayersArgs& args) {
  return Intermediates{}.carve(args, nullptr);
}

void decode_layers(const DecodeLayersArgs& args) {
  if (args.batch > 0) Decoder(args).run();
}

}  // namespace llama_fast
