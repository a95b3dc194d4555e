"""The algorithm of fused attention in plain torch operations: a yardstick for its gradients.

Torch's fused kernel, like every one, does not keep the probabilities: the backward pass makes them
again from the log-sum-exp and takes each row's sum of P * dP from the rounded output instead (Dao
et al. 2022, arXiv:2205.14135, algorithm 4). Where torch has no fused kernel, as for the gradient
of a bias, its unfused one shows the rounding errors of another algorithm.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NEG_INF = float("-inf")


@contextmanager
def fused_backward(dtype: torch.dtype) -> Iterator[None]:
    """Inside, the reference differentiates softmax as fused kernels do, for output in `dtype`."""
    module = importlib.import_module("llama_fast.reference.attention")
    before = module.weighted_values
    module.weighted_values = lambda scores, v, *_: _WeightedValues.apply(scores, v, dtype)
    try:
        yield
    finally:
        module.weighted_values = before


class _WeightedValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: torch.Tensor, v: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        T = v.shape[-2]
        lse = torch.logsumexp(scores, dim=-1)
        p = _probabilities(scores, lse)[..., :T]
        out = (p @ v).to(dtype)
        ctx.save_for_backward(scores, v, out, lse)
        return out.to(v.dtype), lse

    @staticmethod
    def backward(
        ctx: Any, grad_out: torch.Tensor, grad_lse: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        scores, v, out, lse = ctx.saved_tensors
        p = _probabilities(scores, lse)
        row_sum = (grad_out * out.to(v.dtype)).sum(dim=-1) - grad_lse
        grad_p = torch.zeros_like(p)  # a sink's column, if there is one, stays zero
        grad_p[..., : v.shape[-2]] = grad_out @ v.transpose(-1, -2)
        grad_v = p[..., : v.shape[-2]].transpose(-1, -2) @ grad_out
        return p * (grad_p - row_sum.unsqueeze(-1)), grad_v, None


def _probabilities(scores: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    return (scores - lse.masked_fill(lse == NEG_INF, 0).unsqueeze(-1)).exp()
