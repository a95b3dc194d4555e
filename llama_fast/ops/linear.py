"""torch's linear map, as fast as the weights can be read where a few rows meet them."""

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
# Up to how many rows; with more, torch's product of matrices is faster.
MOST_ROWS: dict[torch.dtype, int] = {}
if isa_or_none() != "none":
    MOST_ROWS = {t: torch.ops.llama_fast.linear_rows(torch.empty(0, dtype=t)) for t in _DTYPES}


@overridable
def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`torch.nn.functional.linear`; in decoding on a CPU by a kernel of ours.

    Ours serves a few rows (``MOST_ROWS``, from 8 to 64) in float32, bfloat16 or float16 where
    nothing has to be differentiated; sums are in float32, and a row has the same bits in any
    company. Everything else is torch's own.

    Args:
        input: (..., E).
        weight: (O,E).
        bias: (O,) or None.

    Returns:
        (..., O).
    """
    if (
        input.dtype in MOST_ROWS
        and input.numel() <= MOST_ROWS[input.dtype] * weight.shape[-1]
        and weight.dim() == 2
        and input.dtype == weight.dtype
        and input.is_cpu
        and _plain(input, weight, bias)
    ):
        return torch.ops.llama_fast.linear.default(input, weight, bias)
    return F.linear(input, weight, bias)


def _plain(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether nobody watches: no derivatives, tracing, modes, subclasses, autocast."""
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
