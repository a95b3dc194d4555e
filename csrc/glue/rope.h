// Rotary position embedding, CPU and CUDA: tensors to kernel arguments.
#pragma once

#include "cpu/rope.h"
#include "glue/tensors.h"

namespace llama_fast {

// The arguments of the rope kernel, and the tensors that they point into. Users' arguments were
// checked by ops/rope.py; the checks here only keep a direct call of the operator from reading
// outside its tensors.
struct RopeCall {
  RopeArgs args{};
  Tensor q, k, cos, sin, q_out, k_out;

  RopeCall(const Tensor& q_in, const Tensor& k_in, const Tensor& cos_in, const Tensor& sin_in,
           bool interleaved, bool inverse)
      : q(expect_heads(q_in, k_in)),
        k(with_rows(k_in)),
        cos(table(cos_in, q_in)),
        sin(table(sin_in, q_in)),
        q_out(new_like_heads(q_in, q_in.scalar_type())),
        k_out(new_like_heads(k_in, k_in.scalar_type())) {
    args.dtype = dtype_of(q);
    args.batch = q.size(0);
    args.positions = q.size(2);
    args.pairs = q.size(3) / 2;
    args.q = heads(q, q_out);
    args.k = heads(k, k_out);
    args.cos = set_table(cos, args.cos_strides);
    args.sin = set_table(sin, args.sin_strides);
    args.interleaved = interleaved;
    args.inverse = inverse;
  }

 private:
  static Tensor expect_heads(const Tensor& q, const Tensor& k) {
    STD_TORCH_CHECK(
        q.dim() == 4 && k.dim() == 4 && q.scalar_type() == k.scalar_type() &&
            q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3),
        "llama_fast::rope: q, k: expected shapes (B,H,S,D) and (B,K,S,D), and one dtype");
    expect_valid_sizes(q, k);
    return with_rows(q);
  }

  // (S,D/2) or (B,S,D/2), in the accumulation type.
  static Tensor table(const Tensor& t, const Tensor& q) {
    const int64_t dims = t.dim();
    STD_TORCH_CHECK((dims == 2 || (dims == 3 && t.size(0) == q.size(0))) &&
                        t.size(dims - 2) == q.size(2) && 2 * t.size(dims - 1) == q.size(3),
                    "llama_fast::rope: cos, sin: expected shape (S,D/2) or (B,S,D/2)");
    return with_rows(as_type(t, accumulation_type(q.scalar_type())));
  }

  static RopeHeads heads(const Tensor& in, const Tensor& out) {
    RopeHeads h{in.size(1), in.data_ptr(), out.data_ptr(), {}, {}};
    for (int d = 0; d < 3; ++d) {
      h.in_strides[d] = in.stride(d);
      h.out_strides[d] = out.stride(d);
    }
    return h;
  }

  static const void* set_table(const Tensor& t, int64_t* strides) {
    strides[0] = t.dim() == 3 ? t.stride(0) : 0;
    strides[1] = t.stride(t.dim() - 2);
    return t.data_ptr();
  }
};

}  // namespace llama_fast
