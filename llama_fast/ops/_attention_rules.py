"""Shape and autograd rules of the attention operator, and how it is called."""

from __future__ import annotations

import torch

from llama_fast import reference
from llama_fast.ops._autograd import differentiable, empty_like_heads, loop_over_vmap
from llama_fast.ops.backends.library import library


def _accumulate_dtype(t: torch.Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


@torch.library.register_fake("llama_fast::attention", lib=library)
def _attention_fake(q, k, v, *options):  # type: ignore[no-untyped-def]
    out = empty_like_heads(q, last=v.shape[-1])
    lse = q.new_empty(q.shape[:-1], dtype=_accumulate_dtype(q))
    return out, lse, torch.empty_like(lse)


@torch.library.register_fake("llama_fast::attention_backward", lib=library)
def _attention_backward_fake(grad_out, grad_lse, q, k, v, out, lse, lse_low, *options):  # type: ignore[no-untyped-def]
    bias, _, alibi_slopes, sinks = options[:4]
    grad_mask = options[-1]

    def grad(bit: int, t: torch.Tensor | None) -> torch.Tensor:
        if not grad_mask & (1 << bit) or t is None:
            return q.new_empty(0)
        return empty_like_heads(t) if bit < 3 else t.new_empty(t.shape)

    return tuple(grad(bit, t) for bit, t in enumerate((q, k, v, bias, alibi_slopes, sinks)))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, bias, padding, slopes, sinks, cu_q, cu_k, seed = inputs[:10]
    # A loader may reuse the memory of these, and lse does not hold for other ones.
    shared = cu_k is cu_q
    padding, cu_q, cu_k = (None if t is None else t.clone() for t in (padding, cu_q, cu_k))
    cu_k = cu_q if shared else cu_k
    tensors = (bias, padding, slopes, sinks, cu_q, cu_k, seed)
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.options = inputs[10:]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_lse, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, lse_low, *tensors = ctx.saved_tensors
    bias, _, alibi_slopes, sinks, *_ = tensors
    nothing = (None,) * 16
    if grad_out is None and grad_lse is None:
        return nothing
    needs = ctx.needs_input_grad
    wanted = (*needs[:3], needs[3], needs[5], needs[6])
    differentiable = (q, k, v, bias, alibi_slopes, sinks)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (*differentiable, grad_out, grad_lse)
    ):
        grads = _differentiable_backward(
            ctx.options, differentiable, wanted, grad_out, grad_lse, tensors
        )
    else:
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        # One bit a gradient, in the order that the operator returns them.
        mask = sum(1 << bit for bit, want in enumerate(wanted) if want)
        made = torch.ops.llama_fast.attention_backward(
            grad_out, grad_lse, q, k, v, out, lse, lse_low, *tensors, *ctx.options, mask
        )
        grads = [g if want else None for g, want in zip(made, wanted, strict=True)]
    grad_q, grad_k, grad_v, grad_bias, grad_alibi, grad_sinks = grads
    return (grad_q, grad_k, grad_v, grad_bias, None, grad_alibi, grad_sinks, *nothing[7:])


def _differentiable_backward(options, inputs, wanted, grad_out, grad_lse, tensors):  # type: ignore[no-untyped-def]
    """The backward through the reference, by torch.func, so that every transform may be about it:
    for second derivatives, which are rare."""
    _, key_padding_mask, _, _, cu_seqlens_q, cu_seqlens_k, seed = tensors
    causal, left, right, scale, softcap, dropout_p = options
    asked = [g is not None for g in (grad_out, grad_lse)]

    def forward(*chosen):  # type: ignore[no-untyped-def]
        given = iter(chosen)
        q, k, v, bias, alibi_slopes, sinks = (
            next(given) if want else t for t, want in zip(inputs, wanted, strict=True)
        )
        outputs = reference.attention(
            q,
            k,
            v,
            causal=causal,
            window=(left, right),
            scale=scale,
            softcap=softcap or None,
            bias=bias,
            key_padding_mask=key_padding_mask,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            dropout_p=dropout_p,
            dropout_seed=seed,
            return_lse=True,
        )
        return tuple(o for o, ask in zip(outputs, asked, strict=True) if ask)

    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want]
    upstream = tuple(g for g in (grad_out, grad_lse) if g is not None)
    made = iter(torch.func.vjp(forward, *chosen)[1](upstream))
    return [next(made) if want else None for want in wanted]


call_attention = differentiable("attention", _setup_context, _backward)
loop_over_vmap("attention_backward")
