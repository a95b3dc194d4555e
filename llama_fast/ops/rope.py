"""Rotary position embedding of queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llama_fast import reference
from llama_fast.ops import stock
from llama_fast.ops._autograd import differentiable, empty_like_heads, needs_plain_torch
from llama_fast.ops._checks import check_device, check_dim, check_float, check_same, shape
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.library import library
from llama_fast.reference._dtypes import wide_dtype


@overridable
def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by position: a pair (a, b) becomes (a cos - b sin, b cos + a sin).

    Su et al. 2021, "RoFormer" (arXiv:2104.09864). Computed in float32 (float64 for float64 input)
    and rounded once.

    Args:
        q: (B,H,S,D), D even; float64, float32, bfloat16 or float16. Any strides: a view of
            (B,S,H,D) costs no copy.
        k: (B,K,S,D), the dtype of `q`.
        cos: (S,D/2) or (B,S,D/2), cosine of the angle of each position and pair, any float dtype.
        sin: sine of the same angles, in the shape of `cos`.
        interleaved: which elements of a head form a pair: d and d + D/2 if False (Hugging Face
            checkpoints), 2d and 2d + 1 if True (Meta checkpoints, the paper).

    Returns:
        (q', k') in the shapes and dtypes of `q` and `k`. Each is contiguous, unless its input is a
        (B,H,S,D) view of a (B,S,H,D) tensor: then it is such a view.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit.
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

    backend = choose("rope", q)
    if backend == "torch":
        return stock.rope(q, k, cos, sin, interleaved=interleaved)
    if backend == "reference" or needs_plain_torch():
        return reference.rope(q, k, cos, sin, interleaved=interleaved)
    return _rope(q, k, cos, sin, interleaved, False)


@torch.library.register_fake("llama_fast::rope", lib=library)
def _shapes(q: Tensor, k: Tensor, *others: Tensor | bool) -> tuple[Tensor, Tensor]:
    return empty_like_heads(q), empty_like_heads(k)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, cos, sin, ctx.interleaved, ctx.inverse = inputs
    ctx.tables_need_grad = any(ctx.needs_input_grad[2:4])
    ctx.save_for_backward(cos, sin, *((q, k) if ctx.tables_need_grad else ()))


def _backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of a rotation is the opposite rotation."""
    cos, sin, *heads = ctx.saved_tensors
    needs_q, needs_k = ctx.needs_input_grad[:2]
    rotated_q = rotated_k = grad_cos = grad_sin = None
    if needs_q or needs_k:
        # The gradient of an input that needs none is replaced by a tensor without heads.
        q, k = (g if needed else g[:, :0] for g, needed in ((grad_q, needs_q), (grad_k, needs_k)))
        rotated_q, rotated_k = _rope(q, k, cos, sin, ctx.interleaved, not ctx.inverse)
    if ctx.tables_need_grad:
        pairs = zip(heads, (grad_q, grad_k), strict=True)
        parts = [_table_gradients(x, g, cos, sin, ctx.interleaved) for x, g in pairs]
        grad_cos, grad_sin = (sum(each[1:], each[0]) for each in zip(*parts, strict=True))
        if ctx.inverse:
            grad_sin = -grad_sin
    return (
        rotated_q if needs_q else None,
        rotated_k if needs_k else None,
        grad_cos,
        grad_sin,
        None,
        None,
    )


def _table_gradients(
    x: Tensor, grad: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of cos and sin in x' = x cos + (x rotated by 90 degrees) sin, in plain torch."""
    wide = wide_dtype(x.dtype)
    numbers = [
        (t[..., 0::2], t[..., 1::2]) if interleaved else t.chunk(2, dim=-1)
        for t in (x.to(wide), grad.to(wide))
    ]
    (a, b), (grad_a, grad_b) = numbers
    sums = [a * grad_a + b * grad_b, a * grad_b - b * grad_a]
    over = 1 if cos.dim() == 3 else (0, 1)
    return sums[0].sum(over).to(cos.dtype), sums[1].sum(over).to(sin.dtype)


_rope = differentiable("rope", _setup_context, _backward)
