// The functions behind the operators on a GPU; see csrc/glue/ops.h.
#pragma once

#include "glue/ops.h"

namespace llama_fast {
namespace cuda {

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

}  // namespace cuda
}  // namespace llama_fast
