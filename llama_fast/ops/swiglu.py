"""The gated activation of Llama's feed-forward layer."""

from __future__ import annotations

import torch

from llama_fast import reference
from llama_fast.ops import _backend, stock
from llama_fast.ops._checks import check_float, check_same, check_shape


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, with silu(x) = x / (1 + exp(-x)).

    Shazeer 2020 (arXiv:2002.05202). Computed in float32 (float64 for float64 input) and rounded
    once.

    Args:
        gate: any shape; float64, float32, bfloat16 or float16.
        up: the shape and dtype of `gate`.

    Returns:
        A tensor of the shape and dtype of `gate`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit.
    """
    check_float("gate", gate)
    check_float("up", up)
    check_shape("up", up, tuple(gate.shape), "of gate")
    check_same("up", up, "gate", gate)

    backend = _backend.choose("swiglu", gate)
    function = stock.swiglu if backend == "torch" else reference.swiglu
    return function(gate, up)
