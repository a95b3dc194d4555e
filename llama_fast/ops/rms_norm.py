"""Root-mean-square normalisation, with the residual addition that precedes it in a transformer."""

from __future__ import annotations

import torch

from llama_fast import reference
from llama_fast.ops import _backend, stock
from llama_fast.ops._checks import (
    check_device,
    check_float,
    check_number,
    check_same,
    check_shape,
    shape,
)


def rms_norm(
    input: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight) over the last dimension.

    Zhang and Sennrich 2019 (arXiv:1910.07467). Computed in float32 (float64 for float64 input)
    and rounded once. Without `residual`, x is `input`.

    Args:
        input: (..., E); float64, float32, bfloat16 or float16.
        weight: (E,), any of these dtypes.
        eps: added to the mean square.
        residual: the shape and dtype of `input`. Given, x = input + residual in that dtype, and
            the sum comes back too, for the next layer to add to.
        offset: added to the weight; 1.0 for Gemma, which stores its weight minus one.

    Returns:
        y, the shape and dtype of `input`; with `residual` (y, x).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit, or a negative eps.
    """
    check_float("input", input)
    check_float("weight", weight)
    if input.dim() == 0:
        raise ValueError(f"input: expected shape (...,E), got {shape(input)}")
    check_shape("weight", weight, (input.shape[-1],), "(E,)")
    check_device("weight", weight, "input", input)
    if residual is not None:
        check_float("residual", residual)
        check_shape("residual", residual, tuple(input.shape), "of input")
        check_same("residual", residual, "input", input)
    check_number("eps", eps, "a number >= 0", eps >= 0)

    backend = _backend.choose("rms_norm", input)
    function = stock.rms_norm if backend == "torch" else reference.rms_norm
    return function(input, weight, eps, residual=residual, offset=offset)
