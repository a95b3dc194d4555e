"""Root-mean-square normalisation as mathematics.

    y = x / sqrt(mean(x^2) + eps) * (offset + weight)         x = input, or input + residual

Zhang and Sennrich 2019 (arXiv:1910.07467). Gemma stores its weight minus one: ``offset=1``.
"""

import torch

from ._dtypes import compute_dtype


def rms_norm(
    input: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Normalise the last dimension of input (...,E) by weight (E,); see ``llama_fast.rms_norm``.

    With ``residual`` returns (y, x): x is the sum, as torch makes it, which y normalises.
    """
    x = input if residual is None else input + residual
    x_wide = x.to(compute_dtype(x))
    inverse_rms = torch.rsqrt(x_wide.square().mean(dim=-1, keepdim=True) + eps)
    y = (x_wide * inverse_rms * (offset + weight.to(x_wide.dtype))).to(input.dtype)
    return y if residual is None else (y, x)
