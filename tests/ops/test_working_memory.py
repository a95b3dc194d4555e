"""What an earlier call left in working memory does not reach the results."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

import llama_fast

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of the inputs, after larger calls of that dtype have filled the memory with NaN."""
    found: torch.dtype = request.param
    nan = torch.full((300, 128), torch.nan, dtype=found)
    gradients(lambda *x: llama_fast.attention(*x), [nan[None, None]] * 3)
    target = torch.arange(300)
    gradients(lambda *x: llama_fast.linear_cross_entropy(*x, target), [nan, nan])
    return found


def gradients(call: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result and the gradients of its sum."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = call(*leaves)
    return [out.detach(), *torch.autograd.grad(out.sum(), leaves)]


@pytest.mark.parametrize("head_size", (1, 8, 33, 80))
def test_of_attention(head_size: int, dtype: torch.dtype) -> None:
    for queries, keys, heads, causal in product((1, 3, 8, 21), (1, 16, 33), (1, 2), (False, True)):
        q = (1, heads, queries, head_size)
        k = (1, 1, keys, head_size)

        def call(*qkv: torch.Tensor, causal: bool = causal) -> torch.Tensor:
            return llama_fast.attention(*qkv, causal=causal)

        for made in gradients(call, [torch.randn(shape).to(dtype) for shape in (q, k, k)]):
            assert made.isfinite().all(), (queries, keys, heads, causal)


@pytest.mark.parametrize("width", (1, 7, 33))
def test_of_linear_cross_entropy(width: int, dtype: torch.dtype) -> None:
    for tokens, classes, reduction in product((1, 3, 21), (2, 31, 130), ("mean", "none")):
        target = torch.randint(0, classes, (tokens,))

        def call(
            *inputs: torch.Tensor, target: torch.Tensor = target, reduction: str = reduction
        ) -> torch.Tensor:
            return llama_fast.linear_cross_entropy(*inputs, target, reduction=reduction)

        for made in gradients(call, [torch.randn(n, width).to(dtype) for n in (tokens, classes)]):
            assert made.isfinite().all(), (tokens, classes, reduction)
