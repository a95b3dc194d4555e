// SwiGLU: tensors to kernel arguments. Arguments were checked by ops/swiglu.py; the checks here
// only keep a direct call of the operator from reading outside its tensors.
#include "constants.h"
#include "cpu/dispatch.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

void check(const Tensor& gate, const Tensor& other) {
  STD_TORCH_CHECK(same_shape(gate, other) && gate.scalar_type() == other.scalar_type(),
                  "llama_fast::swiglu: gate, up, grad_out: expected one shape and one dtype");
  expect_valid_sizes(gate);
}

// Sets the rows, each the last dimension of the tensors.
void set_rows(RowMerger& rows, const Tensor& gate, SwigluArgs& a) {
  if (gate.dim() > 0) rows.merge(a.shape);
  a.columns = gate.dim() > 0 ? gate.size(gate.dim() - 1) : 1;
  a.rows = a.columns > 0 ? gate.numel() / a.columns : 0;
}

// One row, where all tensors are contiguous.
void flatten(SwigluArgs& a, bool contiguous) {
  if (!contiguous) return;
  a.columns *= a.rows;
  a.rows = 1;
  a.shape.dims = 0;
}

}  // namespace

Tensor swiglu(Tensor gate, Tensor up) {
  check(gate, up);
  gate = with_rows(gate);
  up = with_rows(up);
  Tensor out = new_tensor(gate, gate.sizes().data(), gate.dim(), gate.scalar_type());
  SwigluArgs a{};
  RowMerger rows(gate);
  rows.add(gate, a.gate);
  rows.add(up, a.up);
  rows.add(out, a.out);
  set_rows(rows, gate, a);
  flatten(a, gate.is_contiguous() && up.is_contiguous());
  kernels().swiglu_forward(a);
  return out;
}

std::tuple<Tensor, Tensor> swiglu_backward(Tensor grad_out, Tensor gate, Tensor up,
                                           int64_t grad_mask) {
  check(gate, up);
  check(gate, grad_out);
  gate = with_rows(gate);
  up = with_rows(up);
  grad_out = with_rows(grad_out);
  const auto gradient = [&](bool wanted) {
    return wanted ? new_tensor(gate, gate.sizes().data(), gate.dim(), gate.scalar_type())
                  : empty_tensor(gate, gate.scalar_type());
  };
  Tensor grad_gate = gradient(grad_mask & kGradGate), grad_up = gradient(grad_mask & kGradUp);
  SwigluArgs a{};
  RowMerger rows(gate);
  rows.add(gate, a.gate);
  rows.add(up, a.up);
  rows.add(grad_out, a.grad_out);
  if (grad_mask & kGradGate) rows.add(grad_gate, a.grad_gate);
  if (grad_mask & kGradUp) rows.add(grad_up, a.grad_up);
  set_rows(rows, gate, a);
  flatten(a, gate.is_contiguous() && up.is_contiguous() && grad_out.is_contiguous());
  kernels().swiglu_backward(a);
  return {grad_gate, grad_up};
}

}  // namespace llama_fast
