#include "glue/tensors.h"

#include <dlfcn.h>

#include "glue/output_cache.h"

namespace llama_fast {
namespace {

// torch_from_blob with a deleter came with torch 2.11. The library is built for 2.10 and looks
// for it at run time; without it every output is an ordinary tensor.
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
    default:
      return aoti_torch_dtype_int64();
  }
}

size_t bytes_of(const int64_t* sizes, int64_t dims, ScalarType type) {
  const bool narrow = type == ScalarType::BFloat16 || type == ScalarType::Half;
  size_t bytes = narrow ? 2 : type == ScalarType::Float ? 4 : 8;
  for (int64_t d = 0; d < dims; ++d) bytes *= static_cast<size_t>(sizes[d]);
  return bytes;
}

}  // namespace

Tensor new_strided(const int64_t* sizes, const int64_t* strides, int64_t dims, ScalarType type) {
  AtenTensorHandle handle;
  const int32_t cpu = aoti_torch_device_type_cpu();
  const Block block = from_blob() == nullptr ? Block{} : take_output(bytes_of(sizes, dims, type));
  if (block.data == nullptr) {
    // Through the C shim: torch::stable::empty looks its operator up by name at every call, which
    // a small input would feel.
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(dims, sizes, strides, shim_type(type), cpu, 0, &handle));
    return Tensor(handle);
  }
  const auto deleter = [](void*, void* context) {
    Block* dead = static_cast<Block*>(context);
    give_back(*dead);
    delete dead;
  };
  STABLE_TORCH_ERROR_CODE_CHECK(from_blob()(block.data, dims, sizes, strides, 0, shim_type(type),
                                            cpu, -1, &handle, aoti_torch_layout_strided(), nullptr,
                                            0, deleter, new Block(block)));
  return Tensor(handle);
}

}  // namespace llama_fast
