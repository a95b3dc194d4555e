// Arguments of the SwiGLU kernels. All tensors have one dtype.
#pragma once

#include "cpu/rows.h"

namespace llama_fast {

struct SwigluArgs {
  RowShape shape;
  int64_t rows, columns;
  RowTensor gate, up;
  RowTensor out;                           // forward
  RowTensor grad_out, grad_gate, grad_up;  // backward; data of the last two may be null
};

}  // namespace llama_fast
