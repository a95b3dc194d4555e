// Attention: tensors to kernel arguments. Shapes and dtypes were checked by ops/attention.py; the
// checks here only keep a direct call of the operator from reading outside its tensors.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "glue/errors.h"
#include "glue/memory.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// (B,H,S,D), or packed (N,H,D).
Tensor4 tensor4(const Tensor& t) {
  Tensor4 r;
  r.data = t.data_ptr();
  if (t.dim() == 4) r.stride_batch = t.stride(0);
  r.stride_head = t.stride(t.dim() - 3 + (t.dim() == 3));
  r.stride_row = t.stride(t.dim() - 2 - (t.dim() == 3));
  r.stride_col = t.stride(t.dim() - 1);
  return r;
}

// (B,H,S), or packed (N,H).
Tensor4 rows4(const Tensor& t) {
  Tensor4 r;
  r.data = t.data_ptr();
  if (t.dim() == 3) r.stride_batch = t.stride(0);
  r.stride_head = t.stride(1);
  r.stride_row = t.dim() == 3 ? t.stride(2) : t.stride(0);
  return r;
}

// (B or 1, H or 1, S or 1, T or 1), broadcast by strides of zero.
Tensor4 broadcast4(const Tensor& t) {
  const auto stride = [&](int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); };
  return {t.data_ptr(), stride(0), stride(1), stride(2), stride(3)};
}

// Kernel arguments, and the tensors that they point into.
struct AttentionCall {
  AttentionArgs args{};
  std::vector<Tensor> kept;

  template <class T>
  const T* keep(Tensor t) {
    kept.push_back(t);
    return static_cast<const T*>(t.data_ptr());
  }

  AttentionCall(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                const OptionalTensor& key_padding_mask, const OptionalTensor& alibi_slopes,
                const OptionalTensor& sinks, const OptionalTensor& cu_seqlens_q,
                const OptionalTensor& cu_seqlens_k, const OptionalTensor& dropout_seed, bool causal,
                int64_t window_left, int64_t window_right, double scale, double softcap,
                double dropout_p) {
    const bool packed = cu_seqlens_q.has_value();
    const int64_t dims = packed ? 3 : 4;
    STD_TORCH_CHECK(q.dim() == dims && k.dim() == dims && v.dim() == dims,
                    "llama_fast::attention: q, k, v must have ", dims, " dimensions");
    STD_TORCH_CHECK(packed == cu_seqlens_k.has_value(),
                    "llama_fast::attention: cu_seqlens_q and cu_seqlens_k go together");
    expect_valid_sizes(q, k, v);
    args.dtype = dtype_of(q);
    STD_TORCH_CHECK(dtype_of(k) == args.dtype && dtype_of(v) == args.dtype,
                    "llama_fast::attention: q, k, v must have one dtype");
    args.heads = q.size(1);
    args.kv_heads = k.size(1);
    args.head_size = q.size(dims - 1);
    args.value_size = v.size(dims - 1);
    STD_TORCH_CHECK(args.kv_heads > 0 ? args.heads % args.kv_heads == 0 : args.heads == 0,
                    "llama_fast::attention: the number of query heads must be a multiple of the "
                    "number of key heads");
    STD_TORCH_CHECK(k.size(dims - 1) == args.head_size && v.size(1) == args.kv_heads,
                    "llama_fast::attention: shapes of q, k, v do not fit");
    if (packed) {
      set_packed(q, k, v, *cu_seqlens_q, *cu_seqlens_k);
    } else {
      args.batch = q.size(0);
      args.queries = q.size(2);
      args.keys = k.size(2);
      STD_TORCH_CHECK(k.size(0) == args.batch && v.size(0) == args.batch && v.size(2) == args.keys,
                      "llama_fast::attention: shapes of q, k, v do not fit");
    }
    args.q = tensor4(q);
    args.k = tensor4(k);
    args.v = tensor4(v);
    args.causal = causal;
    args.window_left = window_left;
    args.window_right = window_right;
    args.scale = scale;
    args.softcap = softcap;
    args.dropout_p = dropout_p;
    if (dropout_p > 0) {
      STD_TORCH_CHECK(dropout_seed.has_value() && dropout_seed->numel() == 1 &&
                          dropout_seed->scalar_type() == ScalarType::Long,
                      "llama_fast::attention: dropout_seed must hold one int64");
      args.dropout_seed = static_cast<uint64_t>(*static_cast<int64_t*>(dropout_seed->data_ptr()));
    }
    set_bias(bias, key_padding_mask, packed);
    const ScalarType type = accumulation_type(q.scalar_type());
    if (alibi_slopes.has_value()) {
      const Tensor& slopes = *alibi_slopes;
      STD_TORCH_CHECK(slopes.dim() == 2 && slopes.size(1) == args.heads &&
                          (slopes.size(0) == 1 || slopes.size(0) == args.batch),
                      "llama_fast::attention: alibi_slopes must be (1,H) or (B,H)");
      args.alibi = keep<void>(contiguous_as(slopes, type));
      args.alibi_stride_head = 1;
      args.alibi_stride_batch = slopes.size(0) == 1 ? 0 : args.heads;
    }
    if (sinks.has_value()) {
      STD_TORCH_CHECK(sinks->dim() == 1 && sinks->size(0) == args.heads,
                      "llama_fast::attention: sinks must be (H,)");
      args.sinks = keep<void>(contiguous_as(*sinks, type));
    }
  }

  void set_packed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q,
                  const Tensor& cu_k) {
    STD_TORCH_CHECK(cu_q.dim() == 1 && cu_k.dim() == 1 && cu_q.numel() > 0 &&
                        cu_q.numel() == cu_k.numel() && v.size(0) == k.size(0),
                    "llama_fast::attention: cu_seqlens_q and cu_seqlens_k must have one length");
    args.batch = cu_q.numel() - 1;
    args.cu_queries = keep<int64_t>(contiguous_as(cu_q, ScalarType::Long));
    args.cu_keys = keep<int64_t>(contiguous_as(cu_k, ScalarType::Long));
    args.queries = longest("cu_seqlens_q", args.cu_queries, args.batch, q.size(0));
    args.keys = longest("cu_seqlens_k", args.cu_keys, args.batch, k.size(0));
  }

  static int64_t longest(const char* name, const int64_t* cu, int64_t n, int64_t rows) {
    check_value(cu[0] == 0 && cu[n] == rows, name,
                ": expected offsets from 0 to the number of rows, ", rows, ", got ", cu[0], " to ",
                cu[n]);
    int64_t max_length = 0;
    for (int64_t i = 0; i < n; ++i) {
      check_value(cu[i + 1] >= cu[i], name, ": expected offsets that do not decrease, got ", cu[i],
                  " then ", cu[i + 1], " at position ", i + 1);
      max_length = std::max(max_length, cu[i + 1] - cu[i]);
    }
    return max_length;
  }

  void set_bias(const OptionalTensor& bias, const OptionalTensor& padding, bool packed) {
    STD_TORCH_CHECK(!packed || (!bias.has_value() && !padding.has_value()),
                    "llama_fast::attention: packed sequences take no bias or key_padding_mask");
    if (bias.has_value()) {
      const int64_t full[] = {args.batch, args.heads, args.queries, args.keys};
      STD_TORCH_CHECK(bias->dim() == 4, "llama_fast::attention: bias must have 4 dimensions");
      for (int64_t d = 0; d < 4; ++d)
        STD_TORCH_CHECK(bias->size(d) == 1 || bias->size(d) == full[d],
                        "llama_fast::attention: bias does not broadcast to (B,H,S,T)");
      args.bias = broadcast4(*bias);
      args.bias_is_bool = bias->scalar_type() == ScalarType::Bool;
      if (!args.bias_is_bool) {
        // Kernels that compute in double read a double bias, the others one of the narrower types.
        args.bias_dtype = dtype_of(*bias);
        STD_TORCH_CHECK((args.bias_dtype == DType::f64) == (args.dtype == DType::f64),
                        "llama_fast::attention: bias must be bool, or float64 exactly if q is");
      }
    }
    if (padding.has_value()) {
      STD_TORCH_CHECK(padding->dim() == 2 && padding->size(0) == args.batch &&
                          padding->size(1) == args.keys &&
                          padding->scalar_type() == ScalarType::Bool,
                      "llama_fast::attention: key_padding_mask must be bool (B,T)");
      args.padding = static_cast<const uint8_t*>(padding->data_ptr());
      args.padding_stride_batch = padding->stride(0);
      args.padding_stride_key = padding->stride(1);
    }
  }
};

// Checks an argument of the backward: the rows of q, with `last` numbers each, or without that
// dimension if `last` is negative.
void expect_like(const char* name, const Tensor& t, const Tensor& q, ScalarType type,
                 int64_t last) {
  const int64_t rows = q.dim() - 1;
  bool fits = t.dim() == rows + (last >= 0) && t.scalar_type() == type;
  for (int64_t d = 0; fits && d < rows; ++d) fits = t.size(d) == q.size(d);
  STD_TORCH_CHECK(fits && (last < 0 || t.size(rows) == last),
                  "llama_fast::attention_backward: ", name,
                  " does not have the shape and dtype that the forward gives it");
}

// (B,H,S), or packed (N,H).
Tensor new_rows(const Tensor& q) {
  return new_tensor(q, q.sizes().data(), q.dim() - 1, accumulation_type(q.scalar_type()));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> attention(
    Tensor q, Tensor k, Tensor v, OptionalTensor bias, OptionalTensor key_padding_mask,
    OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor cu_seqlens_q,
    OptionalTensor cu_seqlens_k, OptionalTensor dropout_seed, bool causal, int64_t window_left,
    int64_t window_right, double scale, double softcap, double dropout_p) {
  AttentionCall call(q, k, v, bias, key_padding_mask, alibi_slopes, sinks, cu_seqlens_q,
                     cu_seqlens_k, dropout_seed, causal, window_left, window_right, scale, softcap,
                     dropout_p);
  Tensor out = new_like_heads(q, q.scalar_type(), call.args.value_size);
  Tensor lse = new_rows(q), lse_low = new_rows(q);
  call.args.out = tensor4(out);
  call.args.lse = rows4(lse);
  call.args.lse_low = rows4(lse_low);
  kernels().attention_forward(call.args);
  return {out, lse, lse_low};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
    Tensor lse_low, OptionalTensor bias, OptionalTensor key_padding_mask,
    OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor cu_seqlens_q,
    OptionalTensor cu_seqlens_k, OptionalTensor dropout_seed, bool causal, int64_t window_left,
    int64_t window_right, double scale, double softcap, double dropout_p, int64_t grad_mask) {
  AttentionCall call(q, k, v, bias, key_padding_mask, alibi_slopes, sinks, cu_seqlens_q,
                     cu_seqlens_k, dropout_seed, causal, window_left, window_right, scale, softcap,
                     dropout_p);
  AttentionArgs& args = call.args;
  const ScalarType type = accumulation_type(q.scalar_type());
  const int64_t last = args.value_size;
  expect_like("grad_out", grad_out, q, q.scalar_type(), last);
  expect_like("out", out, q, q.scalar_type(), last);
  expect_like("lse", lse, q, type, -1);
  expect_like("lse_low", lse_low, q, type, -1);
  if (grad_lse.has_value()) expect_like("grad_lse", *grad_lse, q, type, -1);
  STD_TORCH_CHECK(
      (!(grad_mask & kGradBias) || (bias.has_value() && !args.bias_is_bool)) &&
          (!(grad_mask & kGradAlibiSlopes) || alibi_slopes.has_value()) &&
          (!(grad_mask & kGradSinks) || sinks.has_value()),
      "llama_fast::attention_backward: grad_mask asks for the gradient of a tensor that "
      "is not there, or not floating point");
  const auto none = [&] { return empty_tensor(q, q.scalar_type()); };
  const auto gradient = [&](int64_t bit, const Tensor& t) {
    return grad_mask & bit ? new_like_heads(t, t.scalar_type()) : none();
  };

  Tensor delta = new_rows(q);
  args.delta = rows4(delta);
  args.out = tensor4(out);
  args.lse = rows4(lse);
  args.lse_low = rows4(lse_low);
  args.grad_out = tensor4(grad_out);
  if (grad_lse.has_value()) args.grad_lse = rows4(*grad_lse);

  Tensor grad_q = gradient(kGradQ, q);
  Tensor grad_k = gradient(kGradK, k);
  Tensor grad_v = gradient(kGradV, v);
  if (grad_mask & kGradQ) args.grad_q = tensor4(grad_q);
  if (grad_mask & kGradK) args.grad_k = tensor4(grad_k);
  if (grad_mask & kGradV) args.grad_v = tensor4(grad_v);

  // One sum for each batch element and head, so that no two threads add to the same one.
  Tensor grad_bias = none(), grad_alibi = none(), grad_sinks = none();
  if (grad_mask & kGradBias) {
    const bool summed = bias->size(2) == 1 || bias->size(3) == 1;
    grad_bias = new_zeros(q, {args.batch, args.heads, bias->size(2), bias->size(3)},
                          summed ? ScalarType::Double : type);
    args.grad_bias = broadcast4(grad_bias);
    args.grad_bias.stride_batch = grad_bias.stride(0);
    args.grad_bias.stride_head = grad_bias.stride(1);
  }
  if (grad_mask & kGradAlibiSlopes) {
    grad_alibi = new_zeros(q, {args.batch, args.heads}, ScalarType::Double);
    args.grad_alibi = static_cast<double*>(grad_alibi.data_ptr());
  }
  if (grad_mask & kGradSinks) {
    grad_sinks = new_zeros(q, {args.batch, args.heads}, ScalarType::Double);
    args.grad_sinks = static_cast<double*>(grad_sinks.data_ptr());
  }
  kernels().attention_backward(args);

  if (grad_mask & kGradBias) {
    std::vector<int64_t> shared;
    for (int64_t d = 0; d < 2; ++d)
      if (bias->size(d) == 1 && grad_bias.size(d) != 1) shared.push_back(d);
    if (!shared.empty())
      grad_bias =
          with_idle_memory([&] { return torch::stable::sum(grad_bias, Sizes(shared), true); });
    grad_bias = as_type(grad_bias, bias->scalar_type());
  }
  if (grad_mask & kGradAlibiSlopes) {
    const std::vector<int64_t> batch{0};
    if (alibi_slopes->size(0) == 1 && args.batch != 1)
      grad_alibi = torch::stable::sum(grad_alibi, Sizes(batch), true);
    grad_alibi = as_type(grad_alibi, alibi_slopes->scalar_type());
  }
  if (grad_mask & kGradSinks) {
    const std::vector<int64_t> batch{0};
    grad_sinks = torch::stable::sum(grad_sinks, Sizes(batch), false);
    grad_sinks = as_type(grad_sinks, sinks->scalar_type());
  }
  return {grad_q, grad_k, grad_v, grad_bias, grad_alibi, grad_sinks};
}

}  // namespace llama_fast
