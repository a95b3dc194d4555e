// All blocks of a Llama model for one new token: tensors to kernel arguments.
#include "cpu/decode_layers.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstring>
#include <vector>

#include "cpu/attention.h"
#include "glue/errors.h"
#include "glue/tensors.h"

namespace llama_fast {
namespace {

constexpr int64_t kWeights = 9;  // of a block: the members of DecodeLayerWeights

// Memory of a contiguous matrix, or one whose rows are `stride` apart, as a tensor.
Tensor view_matrix(const void* data, int64_t rows, int64_t columns, int64_t stride, DType dtype) {
  const int64_t sizes[] = {rows, columns}, strides[] = {stride, 1};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<void*>(data), 2, sizes, strides, 0, shim_type(scalar_type_of(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// torch's own product, for more rows than our kernel is faster with.
void linear_of_many_rows(const LinearArgs& a) {
  const Tensor input = view_matrix(a.input, a.rows, a.inner, a.inner, a.dtype);
  const int64_t element = element_size(a.dtype);
  int64_t columns = 0, column = 0;
  for (int i = 0; i < a.count; ++i) columns += a.weights[i].outer;
  for (int i = 0; i < a.count; ++i) {
    const LinearWeight& w = a.weights[i];
    std::array<StableIValue, 3> stack{
        torch::stable::detail::from(input),
        torch::stable::detail::from(view_matrix(w.data, w.outer, a.inner, w.stride, a.dtype)),
        torch::stable::detail::from(OptionalTensor())};
    TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
    const Tensor part = torch::stable::detail::to<Tensor>(stack[0]);
    for (int64_t row = 0; row < a.rows; ++row)
      std::memcpy(static_cast<char*>(a.out) + (row * columns + column) * element,
                  static_cast<const char*>(part.data_ptr()) + row * part.stride(0) * element,
                  w.outer * element);
    column += w.outer;
  }
}

// Everything that the kernels read or write lies inside its tensor.
void check(const Tensor& x, const std::vector<Tensor>& weights, const Tensor& cos,
           const Tensor& sin, const Tensor& k_cache, const Tensor& v_cache,
           const Tensor& cache_seqlens, const Tensor& page_table, int64_t page) {
  const auto fits = [](bool ok, const char* what) {
    STD_TORCH_CHECK(ok, "llama_fast::decode_layers: ", what, " does not fit");
  };
  const ScalarType type = x.scalar_type();
  fits(x.dim() == 2 && x.is_contiguous(), "x");
  expect_valid_sizes(x, k_cache, page_table);
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
             t->scalar_type() == accumulation_type(type),
         "cos or sin");
  fits(cache_seqlens.dim() == 1 && cache_seqlens.size(0) == B &&
           cache_seqlens.scalar_type() == ScalarType::Int && cache_seqlens.is_contiguous(),
       "cache_seqlens");
  fits(page_table.dim() == 2 && page_table.size(0) == B &&
           page_table.scalar_type() == ScalarType::Int && page_table.is_contiguous(),
       "page_table");
  const int64_t pages = k_cache.size(1) / page, capacity = page_table.size(1) * page;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t held = static_cast<const int32_t*>(cache_seqlens.data_ptr())[b];
    check_value(held >= 0 && held < capacity, "cache_seqlens: expected lengths in [0, ", capacity,
                "), got ", held, " at position ", b);
    const auto* row = static_cast<const int32_t*>(page_table.data_ptr()) + b * page_table.size(1);
    for (int64_t i = 0; i <= held / page; ++i)
      check_value(row[i] >= 0 && row[i] < pages, "page_table: expected pages in [0, ", pages,
                  "), got ", row[i], " at position (", b, ", ", i, ")");
  }
}

LinearWeight matrix(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.size(0)}; }

DecodeLayerWeights layer_weights(const Tensor* w) {
  return {w[0].data_ptr(), matrix(w[1]), matrix(w[2]), matrix(w[3]), matrix(w[4]),
          w[5].data_ptr(), matrix(w[6]), matrix(w[7]), matrix(w[8])};
}

}  // namespace

Tensor decode_layers(Tensor x, std::vector<Tensor> weights, Tensor cos, Tensor sin, Tensor k_cache,
                     Tensor v_cache, Tensor cache_seqlens, Tensor page_table, int64_t page,
                     double eps) {
  check(x, weights, cos, sin, k_cache, v_cache, cache_seqlens, page_table, page);
  Tensor out = new_tensor(x, x.sizes().data(), 2, x.scalar_type());
  std::vector<DecodeLayerWeights> layers(k_cache.size(0));
  for (size_t i = 0; i < layers.size(); ++i) layers[i] = layer_weights(&weights[i * kWeights]);
  DecodeLayersArgs a{};
  a.dtype = dtype_of(x);
  a.batch = x.size(0);
  a.model_size = x.size(1);
  a.kv_heads = k_cache.size(2);
  a.head_size = k_cache.size(3);
  a.heads = layers[0].q.outer / a.head_size;
  a.mlp_size = layers[0].gate.outer;
  a.eps = eps;
  a.layers = k_cache.size(0);
  a.weights = layers.data();
  a.final_norm = weights.back().data_ptr();
  a.input = x.data_ptr();
  a.cos = cos.data_ptr();
  a.sin = sin.data_ptr();
  a.k_cache = k_cache.data_ptr();
  a.v_cache = v_cache.data_ptr();
  a.slots = k_cache.size(1);
  a.page = page;
  a.cache_seqlens = static_cast<const int32_t*>(cache_seqlens.data_ptr());
  a.page_table = static_cast<const int32_t*>(page_table.data_ptr());
  a.page_table_stride = page_table.stride(0);
  a.out = out.data_ptr();
  a.linear_of_many_rows = linear_of_many_rows;
  const WorkingMemory workspace(x, decode_layers_workspace(a));
  a.workspace = workspace.data();
  decode_layers(a);
  return out;
}

}  // namespace llama_fast
