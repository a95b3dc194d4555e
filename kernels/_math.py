"""Arithmetic that the kernels share; it is accurate where Triton's own is approximate."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """e^x by the GPU's instruction for 2^x, which float64 lacks."""
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


@triton.jit
def tanh(x, EXACT: tl.constexpr):
    """tanh; with EXACT accurate to float32's precision near zero, too, where 1 - e^-2x cancels."""
    size = tl.abs(x)
    t = exp(-2.0 * size)
    result = divide(1.0 - t, 1.0 + t)
    if EXACT:
        # The Taylor series, to float64's precision below 1/4.
        s = x * x
        p = 18888466084.0 / 194896477400625.0 * s - 443861162.0 / 1856156927625.0
        p = p * s + 6404582.0 / 10854718875.0
        p = p * s - 929569.0 / 638512875.0
        p = p * s + 21844.0 / 6081075.0
        p = p * s - 1382.0 / 155925.0
        p = p * s + 62.0 / 2835.0
        p = p * s - 17.0 / 315.0
        p = p * s + 2.0 / 15.0
        p = p * s - 1.0 / 3.0
        result = tl.where(size < 0.25, size + size * s * p, result)
    return tl.where(x < 0, -result, result)
