// Rotary position embedding: tensors to kernel arguments. Arguments were checked by ops/rope.py;
// the checks here only keep a direct call of the operator from reading outside its tensors.
#include "cpu/dispatch.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

RopeHeads heads(const Tensor& in, const Tensor& out) {
  RopeHeads h{in.size(1), in.data_ptr(), out.data_ptr(), {}, {}};
  for (int d = 0; d < 3; ++d) {
    h.in_strides[d] = in.stride(d);
    h.out_strides[d] = out.stride(d);
  }
  return h;
}

// (S,D/2) or (B,S,D/2), in the type computed in.
Tensor table(const Tensor& t, const Tensor& q) {
  const int64_t dims = t.dim();
  STD_TORCH_CHECK((dims == 2 || (dims == 3 && t.size(0) == q.size(0))) &&
                      t.size(dims - 2) == q.size(2) && 2 * t.size(dims - 1) == q.size(3),
                  "llama_fast::rope: cos and sin must be (S,D/2) or (B,S,D/2)");
  return with_rows(as_type(t, wide_type(q.scalar_type())));
}

const void* set_table(const Tensor& t, int64_t* strides) {
  strides[0] = t.dim() == 3 ? t.stride(0) : 0;
  strides[1] = t.stride(t.dim() - 2);
  return t.data_ptr();
}

}  // namespace

std::tuple<Tensor, Tensor> rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved,
                                bool inverse) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && q.scalar_type() == k.scalar_type() &&
                      q.size(0) == k.size(0) && q.size(2) == k.size(2) && q.size(3) == k.size(3),
                  "llama_fast::rope: q and k must be (B,H,S,D) and (B,K,S,D) of one dtype");
  expect_countable(q, k);
  cos = table(cos, q);
  sin = table(sin, q);
  Tensor q_out = new_like_heads(q, q.scalar_type()), k_out = new_like_heads(k, k.scalar_type());
  q = with_rows(q);
  k = with_rows(k);
  RopeArgs a{};
  a.dtype = dtype_of(q);
  a.batch = q.size(0);
  a.positions = q.size(2);
  a.pairs = q.size(3) / 2;
  a.q = heads(q, q_out);
  a.k = heads(k, k_out);
  a.cos = set_table(cos, a.cos_strides);
  a.sin = set_table(sin, a.sin_strides);
  a.interleaved = interleaved;
  a.inverse = inverse;
  kernels().rope(a);
  return {q_out, k_out};
}

}  // namespace llama_fast
