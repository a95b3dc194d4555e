// The kernels of the instruction set chosen for this run.
#pragma once

#include "cpu/attention.h"
#include "cpu/cross_entropy.h"
#include "cpu/linear.h"
#include "cpu/linear_cross_entropy.h"
#include "cpu/rms_norm.h"
#include "cpu/rope.h"
#include "cpu/swiglu.h"

namespace llama_fast {

struct Kernels {
  const char* isa;
  void (*attention_forward)(const AttentionArgs&);
  void (*attention_backward)(const AttentionArgs&);
  void (*cross_entropy_forward)(CrossEntropyArgs&);   // loss, lse, statistics
  void (*cross_entropy_backward)(CrossEntropyArgs&);  // gradient from lse
  void (*cross_entropy_fused)(CrossEntropyArgs&);     // both in one pass over the logits
  void (*rms_norm_forward)(const RmsNormArgs&);
  void (*rms_norm_backward)(const RmsNormArgs&);
  void (*rope)(const RopeArgs&);
  void (*swiglu_forward)(const SwigluArgs&);
  void (*swiglu_backward)(const SwigluArgs&);
  void (*linear_cross_entropy)(LinearCrossEntropyArgs&);
  void (*linear)(const LinearArgs&);
  int64_t (*linear_rows)(DType);  // with more rows than this, torch's matrix product is faster
};

// The best instruction set of this processor, or the one that LLAMA_FAST_ISA names. Throws
// std::runtime_error if that name is unknown or the processor does not support it.
const Kernels& kernels();

}  // namespace llama_fast
