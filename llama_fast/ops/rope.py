"""Rotary position embedding of queries and keys."""

from __future__ import annotations

import torch

from llama_fast import reference
from llama_fast.ops import _backend, stock
from llama_fast.ops._checks import check_device, check_dim, check_float, check_same, shape


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    interleaved: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn each pair (a, b) of a head to (a cos - b sin, b cos + a sin).

    Su et al. 2021 (arXiv:2104.09864). Computed in float32 (float64 for float64 input) and rounded
    once.

    Args:
        q: (B,H,S,D), D even; float64, float32, bfloat16 or float16.
        k: (B,K,S,D), the dtype of `q`.
        cos: (S,D/2) or (B,S,D/2), cosine of the angle of each position and pair, any float dtype.
        sin: its sine, the same shape.
        interleaved: False pairs numbers d and d + D/2 (Hugging Face checkpoints), True pairs
            2d and 2d + 1 (Meta checkpoints, the paper).

    Returns:
        (q', k'), the shapes and dtypes of `q` and `k`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit.
    """
    for name, value in (("q", q), ("k", k), ("cos", cos), ("sin", sin)):
        check_float(name, value)
        check_device(name, value, "q", q)
    check_dim("q", q, 4, "(B,H,S,D)")
    check_dim("k", k, 4, "(B,K,S,D)")
    check_same("k", k, "q", q)
    B, _, S, D = q.shape
    if D % 2:
        raise ValueError(f"q: expected shape (B,H,S,D) with an even D, got {shape(q)}")
    if (k.shape[0], *k.shape[2:]) != (B, S, D):
        raise ValueError(f"k: expected shape (B,K,S,D) = ({B}, K, {S}, {D}), got {shape(k)}")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape not in ((S, D // 2), (B, S, D // 2)):
            raise ValueError(
                f"{name}: expected shape (S,D/2) = {(S, D // 2)} or (B,S,D/2) = {(B, S, D // 2)}, "
                f"got {shape(table)}"
            )
    if sin.shape != cos.shape:
        raise ValueError(f"sin: expected the shape of cos, {shape(cos)}, got {shape(sin)}")

    backend = _backend.choose("rope", q)
    function = stock.rope if backend == "torch" else reference.rope
    return function(q, k, cos, sin, interleaved=interleaved)
