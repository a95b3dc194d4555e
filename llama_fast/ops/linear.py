"""torch's linear map, as fast as the weights can be read where a few rows meet them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llama_fast.ops._library import has_cpu_kernel, library

MOST_ROWS = 4  # with more, torch's product of matrices comes near
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HERE = has_cpu_kernel("linear")


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`torch.nn.functional.linear`; in decoding on a CPU by a kernel of ours.

    Ours serves up to four rows in float32, bfloat16 or float16 where nothing has to be
    differentiated; sums are in float32. Everything else is torch's own.

    Args:
        input: (..., E).
        weight: (O,E).
        bias: (O,) or None.

    Returns:
        (..., O).
    """
    if (
        _HERE
        and input.numel() <= MOST_ROWS * weight.shape[-1]
        and weight.dim() == 2
        and input.dtype in _DTYPES
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
        and type(input) in ordinary
        and type(weight) in ordinary
        and weight.is_cpu
        and (bias is None or (type(bias) in ordinary and bias.dtype == weight.dtype))
        and input.shape[-1:] == weight.shape[1:]
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
    )


@torch.library.register_fake("llama_fast::linear", lib=library)
def _shapes(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])
