// Rotary position embedding on the CPU.
#include "glue/rope.h"

#include "cpu/dispatch.h"

namespace llama_fast {

std::tuple<Tensor, Tensor> rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved,
                                bool inverse) {
  const RopeCall call(q, k, cos, sin, interleaved, inverse);
  kernels().rope(call.args);
  return {call.q_out, call.k_out};
}

}  // namespace llama_fast
