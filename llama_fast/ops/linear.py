"""torch's linear map, with a kernel for few rows that runs at memory bandwidth."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llama_fast._torch_internals import (
    has_dispatch_mode,
    in_forward_ad,
    in_transform,
    is_jit_tracing,
)
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.library import isa_or_none, library

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# dtype -> the largest number of rows for our kernel; above it torch's matrix product is faster.
MAX_ROWS: dict[torch.dtype, int] = {}
if isa_or_none() != "none":
    MAX_ROWS = {t: torch.ops.llama_fast.linear_rows(torch.empty(0, dtype=t)) for t in _DTYPES}


@overridable
def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """input @ weight.T + bias: `torch.nn.functional.linear`, with a fast kernel for decoding.

    The kernel serves up to ``MAX_ROWS[dtype]`` rows (8 to 64) on a CPU, if no gradient is needed
    and nothing traces or transforms the call. It sums in float32, and a row's result does not
    depend on the other rows. All other calls go to torch.

    Args:
        input: (...,E); float32, bfloat16 or float16 for the kernel, any dtype for torch.
        weight: (O,E), dtype of `input`.
        bias: (O,), dtype of `input`, or None.

    Returns:
        (...,O), dtype of `input`.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit; the error is torch's.
    """
    if (
        input.dtype in MAX_ROWS
        and input.numel() <= MAX_ROWS[input.dtype] * weight.shape[-1]
        and weight.dim() == 2
        and input.dtype == weight.dtype
        and input.is_cpu
        and _kernel_may_serve(input, weight, bias)
    ):
        return torch.ops.llama_fast.linear.default(input, weight, bias)
    return F.linear(input, weight, bias)


def _kernel_may_serve(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the kernel may serve: no gradient, tracing, mode, subclass, transform or autocast."""
    if torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return False
    ordinary = (torch.Tensor, torch.nn.Parameter)
    return (
        not torch.compiler.is_compiling()
        and not is_jit_tracing()
        and type(input) in ordinary
        and type(weight) in ordinary
        and weight.is_cpu
        and (
            bias is None or (type(bias) in ordinary and bias.is_cpu and bias.dtype == weight.dtype)
        )
        and input.shape[-1:] == weight.shape[1:]
        and not has_dispatch_mode()
        and not in_transform()
        and not in_forward_ad()
        and not torch.is_autocast_enabled("cpu")
    )


@torch.library.register_fake("llama_fast::linear", lib=library)
def _shapes(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])
