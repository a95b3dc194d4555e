// Rotary position embedding on a GPU.
#include "glue/rope.h"

#include "cuda/glue/device_scope.h"
#include "cuda/glue/ops.h"
#include "cuda/rope.h"

namespace llama_fast {
namespace cuda {

std::tuple<Tensor, Tensor> rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved,
                                bool inverse) {
  expect_no_float64(q);
  const DeviceScope device(q, k, cos, sin);
  const RopeCall call(q, k, cos, sin, interleaved, inverse);
  rope(device.queue(), call.args);
  return {call.q_out, call.k_out};
}

}  // namespace cuda
}  // namespace llama_fast
