"""Root-mean-square normalisation as mathematics.

    y = x / sqrt(mean(x^2) + eps) * (offset + weight)         x = input, or input + residual

Zhang and Sennrich 2019 (arXiv:1910.07467). Gemma stores its weight minus one: ``offset=1``.
"""

import torch
from torch import Tensor

from ._dtypes import compute_dtype


def rms_norm(
    input: Tensor, weight: Tensor, residual: Tensor | None, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """Return (y, x) for input (...,E) and weight (E,); see ``llama_fast.rms_norm``.

    The arguments are in the operator's order. x has the dtype that torch gives the sum.
    """
    x = input if residual is None else input + residual
    x_wide = x.to(compute_dtype(x))
    inverse_rms = torch.rsqrt(x_wide.square().mean(dim=-1, keepdim=True) + eps)
    y = (x_wide * inverse_rms * (offset + weight.to(x_wide.dtype))).to(input.dtype)
    return y, x
