"""The gated activation of Llama's feed-forward layer."""

from __future__ import annotations

from typing import Any

import torch

from llama_fast import reference
from llama_fast._grad_mask import grad_mask
from llama_fast.ops import stock
from llama_fast.ops._autograd import differentiable, needs_plain_torch
from llama_fast.ops._checks import check_float, check_same, check_shape
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.library import library


@overridable
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where silu(x) = x / (1 + exp(-x)).

    Shazeer 2020 (arXiv:2002.05202). Computed in float32 (float64 for float64 input) and rounded
    once.

    Args:
        gate: any shape and strides (`gate` and `up` may be halves of one tensor); float64, float32,
            bfloat16 or float16.
        up: the shape and dtype of `gate`.

    Returns:
        A contiguous tensor of the shape and dtype of `gate`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit.
    """
    check_float("gate", gate)
    check_float("up", up)
    if up.shape != gate.shape:
        check_shape("up", up, tuple(gate.shape), "of gate")
    check_same("up", up, "gate", gate)

    backend = choose("swiglu", gate)
    if backend == "torch":
        return stock.swiglu(gate, up)
    if backend == "reference" or needs_plain_torch():
        return reference.swiglu(gate, up)
    return _swiglu(gate, up)


@torch.library.register_fake("llama_fast::swiglu", lib=library)
def _shapes(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gate.new_empty(gate.shape)


@torch.library.register_fake("llama_fast::swiglu_backward", lib=library)
def _backward_shapes(
    grad_out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, grad_mask: int
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_gate, grad_up = (
        gate.new_empty(gate.shape if grad_mask >> bit & 1 else 0) for bit in range(2)
    )
    return grad_gate, grad_up


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    gate, up = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads = _gradients(grad_out, gate, up, grad_mask(needs))
    return tuple(g if needed else None for g, needed in zip(grads, needs, strict=True))


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.grad_mask = inputs
    ctx.save_for_backward(*tensors)


def _second_backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """The derivative of the gradients, by differentiating the reference twice."""

    def gradients(
        grad_out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return select(torch.func.vjp(reference.swiglu, gate, up)[1](grad_out))

    def select(pair: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(t for bit, t in enumerate(pair) if ctx.grad_mask >> bit & 1)

    return *torch.func.vjp(gradients, *ctx.saved_tensors)[1](select(grads)), None


_gradients = differentiable("swiglu_backward", _setup_second, _second_backward)
_swiglu = differentiable("swiglu", _setup_context, _backward)
