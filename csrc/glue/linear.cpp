// The linear map of a few rows: tensors to kernel arguments. ops/linear.py calls it where it is
// faster than torch; the checks here only keep a direct call of the operator from reading outside
// its tensors.
#include "cpu/linear.h"

#include "cpu/dispatch.h"
#include "glue/tensors.h"

namespace llama_fast {

Tensor linear(Tensor input, Tensor weight, OptionalTensor bias) {
  STD_TORCH_CHECK(input.dim() >= 1 && weight.dim() == 2 &&
                      input.size(input.dim() - 1) == weight.size(1) &&
                      input.scalar_type() == weight.scalar_type(),
                  "llama_fast::linear: expected input (...,E) and weight (V,E) of one dtype");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                            bias->scalar_type() == weight.scalar_type()),
                  "llama_fast::linear: bias: expected shape (V,) and the dtype of weight");
  expect_valid_sizes(input, weight);
  input = as_contiguous(input);
  if (weight.stride(1) != 1) weight = as_contiguous(weight);
  if (bias) bias = as_contiguous(*bias);
  int64_t sizes[kMaxDims];
  std::copy_n(input.sizes().data(), input.dim(), sizes);
  sizes[input.dim() - 1] = weight.size(0);
  Tensor out = new_tensor(input, sizes, input.dim(), input.scalar_type());
  LinearArgs a{};
  a.dtype = dtype_of(input);
  a.inner = weight.size(1);
  a.rows = 1;
  for (int64_t d = 0; d < input.dim() - 1; ++d) a.rows *= sizes[d];
  a.input = input.data_ptr();
  a.count = 1;
  a.weights[0] = {weight.data_ptr(), weight.stride(0), weight.size(0),
                  bias ? bias->data_ptr() : nullptr};
  a.out = out.data_ptr();
  if (a.rows > 0 && weight.size(0) > 0) kernels().linear(a);
  return out;
}

int64_t linear_rows(Tensor like) { return kernels().linear_rows(dtype_of(like)); }

}  // namespace llama_fast
