"""Shape and autograd rules of the attention operator, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from llama_fast import reference
from llama_fast._grad_mask import grad_mask
from llama_fast.ops._autograd import differentiable, empty_like_heads, loop_over_vmap
from llama_fast.ops.backends.library import library
from llama_fast.reference import AttentionOptions
from llama_fast.reference._dtypes import wide_dtype

# The fields of AttentionOptions that are tensors come first.
TENSORS = AttentionOptions._fields.index("causal")
# The inputs that have a gradient, in the order in which attention_backward returns them.
_DIFFERENTIABLE = ("q", "k", "v", "bias", "alibi_slopes", "sinks")
_INPUTS = ("q", "k", "v", *AttentionOptions._fields)
_POSITIONS = tuple(_INPUTS.index(name) for name in _DIFFERENTIABLE)

OptionalTensor: TypeAlias = torch.Tensor | None


def _differentiable_inputs(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: AttentionOptions
) -> tuple[OptionalTensor, ...]:
    return q, k, v, options.bias, options.alibi_slopes, options.sinks


@torch.library.register_fake("llama_fast::attention", lib=library)
def _attention_fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *options: Any
) -> tuple[torch.Tensor, ...]:
    out = empty_like_heads(q, last=v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=wide_dtype(q.dtype))
    return out, lse, torch.empty_like(lse)


@torch.library.register_fake("llama_fast::attention_backward", lib=library)
def _attention_backward_fake(
    grad_out: torch.Tensor, grad_lse: OptionalTensor, *args: Any
) -> tuple[torch.Tensor, ...]:
    q, k, v, _out, _lse, _lse_low, *options, mask = args

    def grad(bit: int, t: OptionalTensor) -> torch.Tensor:
        if not mask & (1 << bit) or t is None:
            return q.new_empty(0)
        return empty_like_heads(t) if bit < 3 else t.new_empty(t.shape)

    inputs = _differentiable_inputs(q, k, v, AttentionOptions(*options))
    return tuple(grad(bit, t) for bit, t in enumerate(inputs))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, *rest = inputs
    options = AttentionOptions(*rest)
    if options.key_padding_mask is not None or options.cu_seqlens_q is not None:
        options = _with_own_masks(options)
    ctx.save_for_backward(q, k, v, *output, *options[:TENSORS])
    ctx.scalars = options[TENSORS:]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _with_own_masks(options: AttentionOptions) -> AttentionOptions:
    """Copy the tensors that mask keys: the saved lse holds for the values they had in the forward.

    A data loader may overwrite the caller's tensors before the backward pass runs.
    """
    padding, cu_q, cu_k = (
        None if t is None else t.clone()
        for t in (options.key_padding_mask, options.cu_seqlens_q, options.cu_seqlens_k)
    )
    if options.cu_seqlens_k is options.cu_seqlens_q:
        cu_k = cu_q
    return options._replace(key_padding_mask=padding, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)


def _backward(
    ctx: Any, grad_out: OptionalTensor, grad_lse: OptionalTensor, _: None
) -> tuple[OptionalTensor, ...]:
    result: list[OptionalTensor] = [None] * len(_INPUTS)
    if grad_out is None and grad_lse is None:
        return tuple(result)
    needs = ctx.needs_input_grad
    q, k, v, out, lse, lse_low, *tensors = ctx.saved_tensors
    options = AttentionOptions(*tensors, *ctx.scalars)
    needs_grad = [needs[i] for i in _POSITIONS]
    inputs = _differentiable_inputs(q, k, v, options)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*inputs, grad_out, grad_lse)
    ):
        grads = _differentiable_backward(inputs, options, needs_grad, grad_out, grad_lse)
    else:
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        mask = grad_mask(needs_grad)
        grads = torch.ops.llama_fast.attention_backward(
            grad_out, grad_lse, q, k, v, out, lse, lse_low, *options, mask
        )
    for i, grad, needed in zip(_POSITIONS, grads, needs_grad, strict=True):
        result[i] = grad if needed else None
    return tuple(result)


def _differentiable_backward(
    inputs: tuple[OptionalTensor, ...],
    options: AttentionOptions,
    needs_grad: Sequence[bool],
    grad_out: OptionalTensor,
    grad_lse: OptionalTensor,
) -> list[OptionalTensor]:
    """Compute the gradients from the reference by torch.func, so that they can be differentiated.

    Only second derivatives, which are rare, need this.
    """

    def forward(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaf = iter(leaves)
        q, k, v, bias, slopes, sinks = (
            next(leaf) if needed else t for t, needed in zip(inputs, needs_grad, strict=True)
        )
        own = options._replace(bias=bias, alibi_slopes=slopes, sinks=sinks)
        outputs = reference.attention(q, k, v, own)
        return tuple(o for o, g in zip(outputs, (grad_out, grad_lse), strict=True) if g is not None)

    leaves = [t for t, needed in zip(inputs, needs_grad, strict=True) if needed]
    upstream = tuple(g for g in (grad_out, grad_lse) if g is not None)
    grads = iter(torch.func.vjp(forward, *leaves)[1](upstream))
    return [next(grads) if needed else None for needed in needs_grad]


call_attention = differentiable("attention", _setup_context, _backward)
loop_over_vmap("attention_backward")
