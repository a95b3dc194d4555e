// All blocks of a Llama model, for one new token of each of a few sequences whose keys and values
// are in pages. The same kernels as llama_fast/models/llama.py calls, in the same order and with
// the same roundings, but without the time that Python and the dispatcher take between them: about
// 10 µs a call and 14 calls a block, half of the time of a small model.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/dispatch.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

constexpr int64_t kWeights = 9;  // of a block

class Layers {
 public:
  Layers(const Tensor& x, const std::vector<Tensor>& weights, const Tensor& k_cache, int64_t page,
         double eps)
      : weights_(weights),
        type_(x.scalar_type()),
        dtype_(dtype_of(x)),
        B_(x.size(0)),
        E_(x.size(1)),
        K_(k_cache.size(2)),
        D_(k_cache.size(3)),
        HD_(weights[1].size(0)),
        F_(weights[6].size(0)),
        page_(page),
        eps_(eps),
        layer_bytes_(k_cache.stride(0) * element_size(dtype_)),
        rstd_(new_tensor({B_}, wide_type(type_))),
        qkv_(new_tensor({B_, HD_ + 2 * K_ * D_}, type_)),
        attended_(new_tensor({B_, HD_}, type_)),
        lse_(new_tensor({2, B_, HD_ / D_}, wide_type(type_))),
        gate_up_(new_tensor({B_, 2 * F_}, type_)),
        inner_(new_tensor({B_, F_}, type_)),
        found_(new_tensor({B_, E_}, type_)),
        normed_(new_tensor({B_, E_}, type_)),
        sums_{new_tensor({B_, E_}, type_), new_tensor({B_, E_}, type_)} {}

  Tensor run(Tensor x, const Tensor& cos, const Tensor& sin, Tensor& k_cache, Tensor& v_cache,
             const Tensor& held, const Tensor& table) {
    const auto* lengths = static_cast<const int32_t*>(held.data_ptr());
    for (int64_t b = 0; b < B_; ++b) totals_.push_back(lengths[b] + 1);
    const int64_t layers = k_cache.size(0);
    for (int64_t layer = 0; layer < layers; ++layer) {
      const Tensor* w = &weights_[layer * kWeights];
      if (layer == 0) {
        norm(x, nullptr, w[0], nullptr);
      } else {
        x = add_and_norm(x, w[0]);
      }
      linear_to(normed_, w + 1, 3, qkv_);
      turn(cos, sin);
      attend(at(k_cache, layer * layer_bytes_), at(v_cache, layer * layer_bytes_), table);
      linear_to(attended_, w + 4, 1, found_);
      x = add_and_norm(x, w[5]);
      linear_to(normed_, w + 6, 2, gate_up_);
      gate();
      linear_to(inner_, w + 8, 1, found_);
    }
    add_and_norm(x, weights_.back());
    return normed_;
  }

 private:
  static char* at(const Tensor& t, int64_t bytes) {
    return static_cast<char*>(t.data_ptr()) + bytes;
  }
  int64_t bytes(int64_t elements) const { return elements * element_size(dtype_); }

  Rows rows_of(const Tensor& t) const { return {t.data_ptr(), dtype_, {t.stride(0)}}; }

  RowShape rows() const {
    RowShape shape;
    shape.dims = 1;
    shape.sizes[0] = B_;
    return shape;
  }

  // normed = norm(x), or of their sum if there is a residual, which goes to `sum`.
  void norm(const Tensor& x, const Tensor* residual, const Tensor& weight, Tensor* sum) {
    RmsNormArgs a{};
    a.shape = rows();
    a.rows = B_;
    a.features = E_;
    a.eps = eps_;
    a.weight = weight.data_ptr();
    a.weight_dtype = dtype_;
    a.rstd = rstd_.data_ptr();
    a.input = rows_of(x);
    a.y = rows_of(normed_);
    if (residual != nullptr) {
      a.residual = rows_of(*residual);
      a.x = rows_of(*sum);
    }
    kernels().rms_norm_forward(a);
  }

  // What a block found is added to x; the sum comes back, and its norm is in normed_.
  Tensor add_and_norm(const Tensor& x, const Tensor& weight) {
    Tensor& sum = sums_[turns_++ % 2];
    norm(found_, &x, weight, &sum);
    return sum;
  }

  // out = input times each of the weights, side by side.
  void linear_to(const Tensor& input, const Tensor* weights, int count, Tensor& out) {
    if (B_ > kernels().linear_rows(dtype_)) {
      int64_t column = 0;
      for (int i = 0; i < count; ++i) {
        const Tensor part = torchs_linear(input, weights[i]);
        const int64_t n = part.size(1);
        for (int64_t b = 0; b < B_; ++b)
          std::memcpy(at(out, bytes(b * out.stride(0) + column)),
                      at(part, bytes(b * part.stride(0))), bytes(n));
        column += n;
      }
      return;
    }
    LinearArgs a{};
    a.dtype = dtype_;
    a.rows = B_;
    a.inner = input.size(1);
    a.input = input.data_ptr();
    a.count = count;
    for (int i = 0; i < count; ++i)
      a.weights[i] = {weights[i].data_ptr(), weights[i].stride(0), weights[i].size(0)};
    a.out = out.data_ptr();
    kernels().linear(a);
  }

  static Tensor torchs_linear(const Tensor& input, const Tensor& weight) {
    std::array<StableIValue, 3> stack{torch::stable::detail::from(input),
                                      torch::stable::detail::from(weight),
                                      torch::stable::detail::from(OptionalTensor())};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }

  // Rotary positions for the queries and keys, in place.
  void turn(const Tensor& cos, const Tensor& sin) {
    RopeArgs a{};
    a.dtype = dtype_;
    a.batch = 1;
    a.positions = B_;
    a.pairs = D_ / 2;
    a.q = heads(0, HD_ / D_);
    a.k = heads(HD_, K_);
    a.cos = cos.data_ptr();
    a.sin = sin.data_ptr();
    a.cos_strides[1] = cos.stride(0);
    a.sin_strides[1] = sin.stride(0);
    kernels().rope(a);
  }
  RopeHeads heads(int64_t column, int64_t n) const {
    void* data = at(qkv_, bytes(column));
    return {n, data, data, {0, D_, qkv_.stride(0)}, {0, D_, qkv_.stride(0)}};
  }

  // Stores the new keys and values; attended_ is attention over all there are.
  void attend(char* keys, char* values, const Tensor& table) {
    const auto* pages = static_cast<const int32_t*>(table.data_ptr());
    const int64_t KD = K_ * D_;
    for (int64_t b = 0; b < B_; ++b) {
      const int64_t t = totals_[b] - 1;
      const int64_t slot = pages[b * table.stride(0) + t / page_] * page_ + t % page_;
      std::memcpy(keys + bytes(slot * KD), at(qkv_, bytes(b * qkv_.stride(0) + HD_)), bytes(KD));
      std::memcpy(values + bytes(slot * KD), at(qkv_, bytes(b * qkv_.stride(0) + HD_ + KD)),
                  bytes(KD));
    }
    AttentionArgs a{};
    a.dtype = dtype_;
    a.batch = B_;
    a.heads = HD_ / D_;
    a.kv_heads = K_;
    a.queries = 1;
    a.keys = *std::max_element(totals_.begin(), totals_.end());
    a.head_size = a.value_size = D_;
    a.causal = true;
    a.window_left = a.window_right = -1;
    a.scale = 1 / std::sqrt(static_cast<double>(D_));
    a.page_table = pages;
    a.table_stride_batch = table.stride(0);
    a.table_stride_page = 1;
    a.page = page_;
    a.key_lengths = totals_.data();
    a.q = {qkv_.data_ptr(), qkv_.stride(0), D_, 0, 1};
    a.k = {keys, page_ * KD, D_, KD, 1};
    a.v = {values, page_ * KD, D_, KD, 1};
    a.out = {attended_.data_ptr(), HD_, D_, 0, 1};
    a.lse = {lse_.data_ptr(), a.heads, 1, 0, 0};
    a.lse_low = {at(lse_, lse_.stride(0) * element_size(dtype_of(lse_))), a.heads, 1, 0, 0};
    kernels().attention_forward(a);
  }

  // inner = silu(gate) * up
  void gate() {
    SwigluArgs a{};
    a.shape = rows();
    a.rows = B_;
    a.columns = F_;
    a.gate = rows_of(gate_up_);
    a.up = {at(gate_up_, bytes(F_)), dtype_, {gate_up_.stride(0)}};
    a.out = rows_of(inner_);
    kernels().swiglu_forward(a);
  }

  const std::vector<Tensor>& weights_;
  const ScalarType type_;
  const DType dtype_;
  const int64_t B_, E_, K_, D_, HD_, F_, page_;
  const double eps_;
  const int64_t layer_bytes_;
  std::vector<int32_t> totals_;  // keys of each sequence, the new one among them
  Tensor rstd_, qkv_, attended_, lse_, gate_up_, inner_, found_, normed_;
  Tensor sums_[2];
  int turns_ = 0;
};

// Everything that the kernels read or write lies inside its tensor.
void check(const Tensor& x, const std::vector<Tensor>& weights, const Tensor& cos,
           const Tensor& sin, const Tensor& k_cache, const Tensor& v_cache, const Tensor& held,
           const Tensor& table, int64_t page) {
  const auto fits = [](bool ok, const char* what) {
    STD_TORCH_CHECK(ok, "llama_fast::decode_layers: ", what, " does not fit");
  };
  const ScalarType type = x.scalar_type();
  fits(x.dim() == 2 && x.is_contiguous(), "x");
  expect_countable(x, k_cache, table);
  const int64_t B = x.size(0), E = x.size(1);
  fits(k_cache.dim() == 4 && k_cache.scalar_type() == type && k_cache.is_contiguous(), "k_cache");
  fits(v_cache.scalar_type() == type && v_cache.is_contiguous() && same_shape(k_cache, v_cache),
       "v_cache");
  const int64_t L = k_cache.size(0), KD = k_cache.size(2) * k_cache.size(3), D = k_cache.size(3);
  fits(page > 0 && page % kPageUnit == 0 && k_cache.size(1) % page == 0, "page");
  fits(L > 0 && static_cast<int64_t>(weights.size()) == L * kWeights + 1, "the number of weights");
  const int64_t HD = weights[1].dim() == 2 ? weights[1].size(0) : 0;
  const int64_t F = weights[6].dim() == 2 ? weights[6].size(0) : 0;
  fits(KD > 0 && HD % KD == 0 && HD / KD <= kFewRows && D % 2 == 0, "the number of heads");
  const int64_t shapes[kWeights][2] = {{E, 0}, {HD, E}, {KD, E}, {KD, E}, {E, HD},
                                       {E, 0}, {F, E},  {F, E},  {E, F}};
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    const int64_t* shape = shapes[i % kWeights];
    fits(w.scalar_type() == type && w.dim() == (shape[1] == 0 ? 1 : 2) && w.size(0) == shape[0] &&
             (w.dim() == 1 ? w.is_contiguous() : w.size(1) == shape[1] && w.stride(1) == 1),
         "a weight");
  }
  for (const Tensor* t : {&cos, &sin})
    fits(t->dim() == 2 && t->size(0) == B && t->size(1) == D / 2 && t->is_contiguous() &&
             t->scalar_type() == wide_type(type),
         "cos or sin");
  fits(held.dim() == 1 && held.size(0) == B && held.scalar_type() == ScalarType::Int &&
           held.is_contiguous(),
       "cache_seqlens");
  fits(table.dim() == 2 && table.size(0) == B && table.scalar_type() == ScalarType::Int &&
           table.is_contiguous(),
       "page_table");
  const int64_t pages = k_cache.size(1) / page;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t n = static_cast<const int32_t*>(held.data_ptr())[b];
    STD_TORCH_CHECK(n >= 0 && n < table.size(1) * page,
                    "ValueError: cache_seqlens: expected lengths in [0, ", table.size(1) * page,
                    "), got ", n, " at position ", b);
    const auto* row = static_cast<const int32_t*>(table.data_ptr()) + b * table.size(1);
    for (int64_t i = 0; i <= n / page; ++i)
      STD_TORCH_CHECK(row[i] >= 0 && row[i] < pages,
                      "ValueError: page_table: expected pages in [0, ", pages, "), got ", row[i],
                      " at position (", b, ", ", i, ")");
  }
}

}  // namespace

Tensor decode_layers(Tensor x, std::vector<Tensor> weights, Tensor cos, Tensor sin, Tensor k_cache,
                     Tensor v_cache, Tensor cache_seqlens, Tensor page_table, int64_t page,
                     double eps) {
  check(x, weights, cos, sin, k_cache, v_cache, cache_seqlens, page_table, page);
  if (x.size(0) == 0) return new_tensor(x.sizes().data(), 2, x.scalar_type());
  Layers layers(x, weights, k_cache, page, eps);
  return layers.run(x, cos, sin, k_cache, v_cache, cache_seqlens, page_table);
}

}  // namespace llama_fast
