"""Root-mean-square normalisation, optionally fused with the residual addition before it."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from llama_fast import reference
from llama_fast._grad_mask import grad_mask
from llama_fast.ops import stock
from llama_fast.ops._autograd import differentiable, empty_like_heads, needs_plain_torch
from llama_fast.ops._checks import (
    check_device,
    check_float,
    check_number,
    check_shape,
    number,
    shape,
)
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.library import library
from llama_fast.reference._dtypes import wide_dtype


@overload
def rms_norm(
    input: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: None = None, offset: float = 0.0
) -> Tensor: ...
@overload
def rms_norm(
    input: Tensor, weight: Tensor, eps: float = 1e-6, *, residual: Tensor, offset: float = 0.0
) -> tuple[Tensor, Tensor]: ...
@overridable
def rms_norm(
    input: Tensor,
    weight: Tensor,
    eps: float = 1e-6,
    *,
    residual: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = x / sqrt(mean(x^2) + eps) * (offset + weight) over the last dimension.

    Zhang and Sennrich 2019 (arXiv:1910.07467). Computed in float32 (float64 for float64 input)
    and rounded once. Without `residual`, x is `input`.

    Args:
        input: (..., E); float64, float32, bfloat16 or float16.
        weight: (E,), in any of these dtypes.
        eps: added to the mean square.
        residual: shape of `input`, any of these dtypes. If given, x = input + residual in the
            dtype that torch gives the sum (bfloat16 + float32 is float32), and x is returned
            too, as the residual of the next layer.
        offset: added to the weight; 1.0 for Gemma, which stores its weight minus one.

    Returns:
        y in the shape and dtype of `input`; with `residual` the pair (y, x). Results are
        contiguous, unless `input` is a (B,H,S,E) view of a (B,S,H,E) tensor: then they are such
        views.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit, or eps is negative.
    """
    check_float("input", input)
    check_float("weight", weight)
    if input.dim() == 0:
        raise ValueError(f"input: expected shape (...,E), got {shape(input)}")
    if weight.shape != input.shape[-1:]:
        check_shape("weight", weight, (input.shape[-1],), "(E,)")
    check_device("weight", weight, "input", input)
    if residual is not None:
        check_float("residual", residual)
        if residual.shape != input.shape:
            check_shape("residual", residual, tuple(input.shape), "of input")
        check_device("residual", residual, "input", input)
    eps, offset = number("eps", eps), number("offset", offset)
    check_number("eps", eps, "a number >= 0", eps >= 0)

    backend = choose("rms_norm", input)
    arguments = (input, weight, residual, eps, offset)
    if backend == "torch":
        y, x = stock.rms_norm(*arguments)
    elif backend == "reference" or needs_plain_torch():
        y, x = reference.rms_norm(*arguments)
    else:
        y, x, _ = _rms_norm(*arguments)
    return y if residual is None else (y, x)


@torch.library.register_fake("llama_fast::rms_norm", lib=library)
def _shapes(
    input: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    eps: float,
    offset: float,
) -> tuple[Tensor, ...]:
    if residual is None:
        dtype, x = input.dtype, input.new_empty(0)
    else:
        dtype = torch.promote_types(input.dtype, residual.dtype)
        x = empty_like_heads(input, dtype)
    return empty_like_heads(input), x, input.new_empty(input.shape[:-1], dtype=wide_dtype(dtype))


@torch.library.register_fake("llama_fast::rms_norm_backward", lib=library)
def _backward_shapes(
    grad_y: Tensor,
    grad_x: Tensor | None,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    eps: float,
    offset: float,
    grad_mask: int,
) -> tuple[Tensor, Tensor]:
    dx = empty_like_heads(x) if grad_mask & 1 else x.new_empty(0)
    return dx, weight.new_empty(weight.shape if grad_mask & 2 else 0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, residual, *ctx.options = inputs
    _, x, rstd = output
    ctx.mark_non_differentiable(*((x, rstd) if residual is None else (rstd,)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input if residual is None else x, weight, rstd)
    ctx.dtypes = input.dtype, None if residual is None else residual.dtype


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_x: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    needs_input, needs_weight, needs_residual = ctx.needs_input_grad[:3]
    dx, grad_weight = grad_x, None
    if grad_y is not None:
        x, weight, rstd = ctx.saved_tensors
        mask = grad_mask((needs_input or needs_residual, needs_weight))
        dx, grad_weight = _gradients(grad_y, grad_x, x, weight, rstd, *ctx.options, mask)
    return (
        dx.to(ctx.dtypes[0]) if needs_input and dx is not None else None,
        grad_weight if needs_weight else None,
        dx.to(ctx.dtypes[1]) if needs_residual and dx is not None else None,
        None,
        None,
    )


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_y, grad_x, x, weight, _, *ctx.options = inputs
    ctx.save_for_backward(grad_y, grad_x, x, weight)


def _second_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of the gradients, by differentiating the reference twice.

    rstd gets no derivative: the gradients are treated as functions of x, which determines rstd.
    """
    grad_y, grad_x, x, weight = ctx.saved_tensors
    eps, offset, mask = ctx.options

    def select(pair: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t for bit, t in enumerate(pair) if mask >> bit & 1)

    def gradients(
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor,
        grad_x: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        def norm(x: Tensor, weight: Tensor) -> Tensor:
            y, _ = reference.rms_norm(x, weight, None, eps, offset)
            return y.to(grad_y.dtype)

        dx, grad_weight = torch.func.vjp(norm, x, weight)[1](grad_y)
        return select((dx if grad_x is None else dx + grad_x, grad_weight))

    tensors = [grad_y, x, weight] + ([] if grad_x is None else [grad_x])
    second = torch.func.vjp(gradients, *tensors)[1](select(grads))
    second_grad_x = None if grad_x is None else second[3]
    return second[0], second_grad_x, second[1], second[2], *(None,) * 4


_gradients = differentiable("rms_norm_backward", _setup_second, _second_backward)
_rms_norm = differentiable("rms_norm", _setup_context, _backward)
