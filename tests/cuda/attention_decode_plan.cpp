// The rules of attention_decode_plan.h, as functions that ctypes can call.
#include "cuda/attention_decode_plan.h"
using namespace llama_fast;
using namespace llama_fast::cuda;
extern "C" {
void plan(int processors, int64_t shared, int64_t size, int64_t units, int64_t rows, int64_t keys,
          int64_t* out) {
  const DecodePlan p = decode_plan({90, processors, shared}, size, units, rows, keys);
  out[0] = p.tiles, out[1] = p.row_blocks, out[2] = p.shares;
}
int64_t shared_bytes(int64_t size, int tiles) { return decode_shared_bytes(size, tiles); }
const char* refusal(int dtype, int64_t size, int64_t values, bool aligned) {
  return decode_refusal(static_cast<DType>(dtype), size, values, aligned);
}
}
