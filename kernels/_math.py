"""Arithmetic that the kernels share: rounded correctly where Triton's own takes a shortcut."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """e^x through the GPU's own 2^x (float64 has none)."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return tl.exp2(x * LOG2E)


@triton.jit
def divide(a, b):
    """a / b; Triton's float32 division may be off by two units in the last place."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def reciprocal_root(x):
    """1 / sqrt(x)."""
    if x.dtype == tl.float64:
        return 1.0 / tl.sqrt(x)
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(x))
