#include "glue/tensors.h"

#include <dlfcn.h>

#include <cstring>
#include <new>
#include <optional>
#include <string>

#include "constants.h"
#include "glue/box.h"
#include "glue/memory.h"
#include "glue/output_cache.h"

namespace llama_fast {
namespace {

// torch_from_blob with a deleter came with torch 2.11. The library is built for 2.10 and looks the
// function up at run time; without it torch allocates every output.
using FromBlob = AOTITorchError (*)(void* data, int64_t dims, const int64_t* sizes,
                                    const int64_t* strides, int64_t offset, int32_t dtype,
                                    int32_t device_type, int32_t device_index,
                                    AtenTensorHandle* result, int32_t layout,
                                    const uint8_t* metadata, int64_t metadata_size,
                                    void (*deleter)(void* data, void* context), void* context);

FromBlob from_blob() {
  static const auto function = reinterpret_cast<FromBlob>(dlsym(RTLD_DEFAULT, "torch_from_blob"));
  return function;
}

// The size of a tensor; throws where no memory is that large.
size_t tensor_bytes(const int64_t* sizes, int64_t dims, ScalarType type) {
  const bool narrow = type == ScalarType::BFloat16 || type == ScalarType::Half;
  const bool single = type == ScalarType::Float || type == ScalarType::Int;
  size_t bytes = narrow ? 2 : single ? 4 : 8;
  bool fits = true;
  for (int64_t d = 0; d < dims; ++d) {
    if (sizes[d] == 0) return 0;
    fits = !__builtin_mul_overflow(bytes, static_cast<size_t>(sizes[d]), &bytes) && fits;
  }
  if (fits && bytes <= SIZE_MAX / 4) return bytes;
  std::string shape;
  for (int64_t d = 0; d < dims; ++d) shape += (d > 0 ? ", " : "") + std::to_string(sizes[d]);
  throw std::runtime_error("llama_fast: " LF_NOT_ENOUGH_MEMORY
                           ": no memory is large enough for a tensor " +
                           ("of shape (" + shape + ")"));
}

int32_t device_type_of(const Tensor& t) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type;
}

// As new_strided, on the CPU; no tensor where there is not enough memory.
std::optional<Tensor> try_new(const int64_t* sizes, const int64_t* strides, int64_t dims,
                              ScalarType type, size_t bytes) {
  AtenTensorHandle handle;
  const int32_t cpu = aoti_torch_device_type_cpu();
  const OutputMemory memory = from_blob() == nullptr ? OutputMemory{} : take_output_memory(bytes);
  if (memory.data == nullptr) {
    // The C function, because torch::stable::empty looks its operator up by name at every call,
    // which takes time that small inputs notice.
    if (aoti_torch_empty_strided(dims, sizes, strides, shim_type(type), cpu, 0, &handle) !=
        TORCH_SUCCESS)
      return {};
    return Tensor(handle);
  }
  const auto deleter = [](void*, void* context) {
    auto* const freed = static_cast<OutputMemory*>(context);
    return_output_memory(*freed);
    delete freed;
  };
  auto* const kept = new (std::nothrow) OutputMemory(memory);
  if (kept == nullptr ||
      from_blob()(memory.data, dims, sizes, strides, 0, shim_type(type), cpu, -1, &handle,
                  aoti_torch_layout_strided(), nullptr, 0, deleter, kept) != TORCH_SUCCESS) {
    return_output_memory(memory);
    delete kept;
    return {};
  }
  return Tensor(handle);
}

}  // namespace

int32_t shim_type(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    default:
      return aoti_torch_dtype_int64();
  }
}

Tensor new_strided(const Tensor& like, const int64_t* sizes, const int64_t* strides, int64_t dims,
                   ScalarType type) {
  const int32_t device_type = device_type_of(like);
  if (device_type != aoti_torch_device_type_cpu()) {
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, shim_type(type),
                                                    device_type, like.get_device_index(), &handle));
    return Tensor(handle);
  }
  const size_t bytes = tensor_bytes(sizes, dims, type);
  std::optional<Tensor> made = try_new(sizes, strides, dims, type, bytes);
  if (!made) {
    const std::string reason = torch_error_message();
    if (free_idle_memory() > 0) made = try_new(sizes, strides, dims, type, bytes);
    if (!made) throw_out_of_memory(bytes, reason);
  }
  return *made;
}

Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  Tensor t = new_tensor(like, sizes, type);
  if (device_type_of(t) != aoti_torch_device_type_cpu()) return torch::stable::zero_(t);
  std::memset(t.data_ptr(), 0,
              tensor_bytes(sizes.begin(), static_cast<int64_t>(sizes.size()), type));
  return t;
}

Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = new_tensor(t, t.sizes().data(), t.dim(), t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

Tensor as_type(const Tensor& t, ScalarType type) {
  if (t.scalar_type() == type) return t;
  Tensor copy = new_like_heads(t, type);
  torch::stable::copy_(copy, t);
  return copy;
}

}  // namespace llama_fast
