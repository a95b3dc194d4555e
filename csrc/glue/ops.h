// The functions behind the registered operators: tensors in, kernel arguments out.
// Their parameters are those of the schemas in llama_fast/ops/backends/table.py, in the same order.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/types.h"

namespace llama_fast {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> attention(
    Tensor q, Tensor k, Tensor v, OptionalTensor bias, OptionalTensor key_padding_mask,
    OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor cu_seqlens_q,
    OptionalTensor cu_seqlens_k, OptionalTensor dropout_seed, bool causal, int64_t window_left,
    int64_t window_right, double scale, double softcap, double dropout_p);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    Tensor grad_out, OptionalTensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse,
    Tensor lse_low, OptionalTensor bias, OptionalTensor key_padding_mask,
    OptionalTensor alibi_slopes, OptionalTensor sinks, OptionalTensor cu_seqlens_q,
    OptionalTensor cu_seqlens_k, OptionalTensor dropout_seed, bool causal, int64_t window_left,
    int64_t window_right, double scale, double softcap, double dropout_p, int64_t grad_mask);

std::tuple<Tensor, Tensor> attention_decode(Tensor q, Tensor k_cache, Tensor v_cache,
                                            OptionalTensor k, OptionalTensor v,
                                            Tensor cache_seqlens, OptionalTensor page_table,
                                            OptionalTensor alibi_slopes, OptionalTensor sinks,
                                            int64_t window_left, double scale, double softcap);

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy(Tensor input, Tensor target,
                                                         OptionalTensor weight,
                                                         int64_t ignore_index, int64_t reduction,
                                                         double label_smoothing, double softcap,
                                                         double z_loss, bool stats);

Tensor cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor lse, Tensor target,
                              OptionalTensor weight, int64_t ignore_index, int64_t reduction,
                              double label_smoothing, double softcap, double z_loss,
                              OptionalTensor grad_lse);

std::tuple<Tensor, Tensor, Tensor, Tensor> cross_entropy_inplace(
    Tensor input, Tensor target, OptionalTensor weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool stats);

std::tuple<Tensor, Tensor, Tensor> rms_norm(Tensor input, Tensor weight, OptionalTensor residual,
                                            double eps, double offset);

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_y, OptionalTensor grad_x, Tensor x,
                                             Tensor weight, Tensor rstd, double eps, double offset,
                                             int64_t grad_mask);

std::tuple<Tensor, Tensor> rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved,
                                bool inverse);

Tensor linear(Tensor input, Tensor weight, OptionalTensor bias);

int64_t linear_rows(Tensor like);

Tensor decode_layers(Tensor x, std::vector<Tensor> weights, Tensor cos, Tensor sin, Tensor k_cache,
                     Tensor v_cache, Tensor cache_seqlens, Tensor page_table, int64_t page,
                     double eps);

Tensor swiglu(Tensor gate, Tensor up);

std::tuple<Tensor, Tensor> swiglu_backward(Tensor grad_out, Tensor gate, Tensor up,
                                           int64_t grad_mask);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy(
    Tensor input, Tensor linear_weight, Tensor target, OptionalTensor linear_bias,
    OptionalTensor grad_loss, OptionalTensor weight, int64_t ignore_index, int64_t reduction,
    double label_smoothing, double softcap, double z_loss, bool stats, int64_t grad_mask,
    OptionalTensor grad_lse);

std::tuple<Tensor, int64_t> pack_sequences(Tensor lengths, int64_t capacity);

Tensor cu_seqlens(Tensor lengths);

// Compiler, C++ standard and architecture of the library, and the beginning of the message of an
// error where memory runs out.
std::string build_info();

// Instruction-set extensions that the kernels use or could use: name -> present. The operating
// system's support counts: a feature whose registers it does not save is absent.
std::string cpu_features();

// The numbers of csrc/constants.h, the values of DType, and the memory that linear cross-entropy
// uses, by name.
std::string constants();

// --- helpers shared by the glue files ------------------------------------------------------

using torch::headeronly::ScalarType;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    default:
      STD_TORCH_CHECK(false, "expected float64, float32, bfloat16 or float16");
  }
}

inline ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return ScalarType::Double;
    case DType::f32:
      return ScalarType::Float;
    case DType::bf16:
      return ScalarType::BFloat16;
    default:
      return ScalarType::Half;
  }
}

}  // namespace llama_fast
