// Sequence packing: tensors to vectors and back. data/bin_packing.py checks the lengths; the checks
// here only keep a direct call of the operators from reading outside its tensors.
#include "cpu/bin_packing.h"

#include <algorithm>

#include "glue/tensors.h"

namespace llama_fast {
namespace {

// `lengths`, contiguous.
Tensor checked(const Tensor& lengths) {
  STD_TORCH_CHECK(lengths.dim() == 1 && lengths.scalar_type() == ScalarType::Long,
                  "llama_fast: lengths: expected a vector of int64");
  return as_contiguous(lengths);
}

template <class T>
Tensor as_tensor(const std::vector<T>& values, ScalarType type, const Tensor& like) {
  Tensor t = new_tensor(like, {static_cast<int64_t>(values.size())}, type);
  std::copy(values.begin(), values.end(), static_cast<T*>(t.data_ptr()));
  return t;
}

}  // namespace

std::tuple<Tensor, int64_t> pack_sequences(Tensor lengths, int64_t capacity) {
  lengths = checked(lengths);
  const auto* const data = static_cast<const int64_t*>(lengths.data_ptr());
  const Packing packing = pack_into_bins(data, lengths.numel(), capacity);
  return {as_tensor(packing.bin_of, ScalarType::Long, lengths), packing.n_bins};
}

Tensor cu_seqlens(Tensor lengths) {
  lengths = checked(lengths);
  const auto* const data = static_cast<const int64_t*>(lengths.data_ptr());
  return as_tensor(cumulative_lengths(data, lengths.numel()), ScalarType::Int, lengths);
}

}  // namespace llama_fast
