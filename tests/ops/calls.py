"""One small call of every op, for the promises that all ops make alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import llama_fast

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Call:
    """`function(*leaves)` returns a tuple of floating tensors, differentiable in each leaf."""

    op: str
    function: Callable[..., Tensors]
    shapes: tuple[tuple[int, ...], ...]

    def leaves(self, dtype: torch.dtype = torch.float64) -> Tensors:
        """Fresh inputs, the same numbers at every call."""
        g = torch.Generator().manual_seed(4)
        return tuple(
            torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
            for shape in self.shapes
        )


TARGET = torch.tensor([3, -100, 0, 6, 1])
CU_SEQLENS = torch.tensor([0, 2, 5])
CLASS_WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1, 0.3, 1.5, 1.0], dtype=torch.float64)


def _attention(*leaves: torch.Tensor) -> Tensors:
    return llama_fast.attention(*leaves, causal=True, return_lse=True)


def _attention_with_everything(*leaves: torch.Tensor) -> Tensors:
    q, k, v, bias, slopes, sinks = leaves
    return llama_fast.attention(
        q, k, v, bias=bias, alibi_slopes=slopes, sinks=sinks, window=(2, 1), softcap=2.0,
        return_lse=True,
    )  # fmt: skip


def _packed_attention(*leaves: torch.Tensor) -> Tensors:
    offsets = CU_SEQLENS.to(leaves[0].device)
    return llama_fast.attention(*leaves, cu_seqlens_q=offsets, causal=True, return_lse=True)


def _cross_entropy(logits: torch.Tensor) -> Tensors:
    return (llama_fast.cross_entropy(logits, TARGET.to(logits.device)),)


def _cross_entropy_with_everything(logits: torch.Tensor) -> Tensors:
    weight = CLASS_WEIGHT.to(logits)
    return (
        llama_fast.cross_entropy(
            logits,
            TARGET.to(logits.device),
            weight,
            reduction="none",
            label_smoothing=0.1,
            softcap=3.0,
            z_loss=0.01,
        ),
    )


def _cross_entropy_of_probabilities(logits: torch.Tensor, target: torch.Tensor) -> Tensors:
    return (llama_fast.cross_entropy(logits, target, label_smoothing=0.1),)


def _inplace_cross_entropy(logits: torch.Tensor) -> Tensors:
    return (
        llama_fast.cross_entropy(logits * 1, TARGET.to(logits.device), z_loss=0.01, inplace=True),
    )


def _cross_entropy_and_lse(logits: torch.Tensor) -> Tensors:
    loss, stats = llama_fast.cross_entropy(
        logits, TARGET.to(logits.device), CLASS_WEIGHT.to(logits), label_smoothing=0.1,
        softcap=3.0, z_loss=0.01, return_stats=True,
    )  # fmt: skip
    return loss, stats.lse


def _linear_cross_entropy(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Tensors:
    return (llama_fast.linear_cross_entropy(x, w, TARGET.to(x.device), linear_bias=b, softcap=3.0),)


def _linear_cross_entropy_by_token(x: torch.Tensor, w: torch.Tensor) -> Tensors:
    return (
        llama_fast.linear_cross_entropy(
            x, w, TARGET.to(x.device), reduction="none", label_smoothing=0.1
        ),
    )


def _linear_cross_entropy_and_lse(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> Tensors:
    loss, stats = llama_fast.linear_cross_entropy(
        x, w, TARGET.to(x.device), linear_bias=b, label_smoothing=0.1, softcap=3.0, z_loss=0.01,
        return_stats=True,
    )  # fmt: skip
    return loss, stats.lse


def _rms_norm(x: torch.Tensor, w: torch.Tensor) -> Tensors:
    return (llama_fast.rms_norm(x, w),)


def _rms_norm_with_residual(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor) -> Tensors:
    return llama_fast.rms_norm(x, w, 1e-5, residual=r, offset=1.0)


def _rope(q: torch.Tensor, k: torch.Tensor) -> Tensors:
    angle = torch.arange(20.0).view(5, 4).to(q)
    return llama_fast.rope(q, k, angle.cos(), angle.sin())


def _interleaved_rope(q: torch.Tensor, k: torch.Tensor) -> Tensors:
    angle = torch.arange(40.0).view(2, 5, 4).to(q)
    return llama_fast.rope(q, k, angle.cos(), angle.sin(), interleaved=True)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> Tensors:
    return (llama_fast.swiglu(gate, up),)


HEADS = ((2, 4, 3, 4), (2, 2, 4, 4), (2, 2, 4, 3))
CALLS = {
    "attention": Call("attention", _attention, HEADS),
    "attention with everything": Call(
        "attention", _attention_with_everything, (*HEADS, (1, 4, 3, 4), (4,), (4,))
    ),
    "packed attention": Call("attention", _packed_attention, ((5, 4, 3), (5, 2, 3), (5, 2, 3))),
    "cross_entropy": Call("cross_entropy", _cross_entropy, ((5, 7),)),
    "cross_entropy with everything": Call(
        "cross_entropy", _cross_entropy_with_everything, ((5, 7),)
    ),
    "cross_entropy and lse": Call("cross_entropy", _cross_entropy_and_lse, ((5, 7),)),
    "cross_entropy of probabilities": Call(
        "cross_entropy", _cross_entropy_of_probabilities, ((5, 7), (5, 7))
    ),
    "cross_entropy in place": Call("cross_entropy", _inplace_cross_entropy, ((5, 7),)),
    "linear_cross_entropy": Call(
        "linear_cross_entropy", _linear_cross_entropy, ((5, 8), (7, 8), (7,))
    ),
    "linear_cross_entropy by token": Call(
        "linear_cross_entropy", _linear_cross_entropy_by_token, ((5, 8), (7, 8))
    ),
    "linear_cross_entropy and lse": Call(
        "linear_cross_entropy", _linear_cross_entropy_and_lse, ((5, 8), (7, 8), (7,))
    ),
    "rms_norm": Call("rms_norm", _rms_norm, ((5, 8), (8,))),
    "rms_norm with residual": Call("rms_norm", _rms_norm_with_residual, ((5, 8), (8,), (5, 8))),
    "rope": Call("rope", _rope, ((2, 4, 5, 8), (2, 2, 5, 8))),
    "interleaved rope": Call("rope", _interleaved_rope, ((2, 4, 5, 8), (2, 2, 5, 8))),
    "swiglu": Call("swiglu", _swiglu, ((5, 8), (5, 8))),
}


def total(outputs: Tensors) -> torch.Tensor:
    """A scalar, not linear in the outputs, that weighs every element differently."""
    return sum(
        (out.square() * torch.linspace(0.5, 1.5, out.numel()).to(out).view(out.shape)).sum()
        for out in outputs
    )
