"""The drop-in replacement of torch.nn.functional.scaled_dot_product_attention."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import llama_fast

OP = "attention"

# Shapes of query, key and value; options.
CASES: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "plain": (((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)), {}),
    "no leading dimensions": (((5, 8), (7, 8), (7, 8)), {}),
    "one leading dimension": (((3, 5, 8), (3, 7, 8), (3, 7, 8)), {}),
    "three leading dimensions": (((2, 3, 4, 5, 8), (2, 3, 4, 7, 8), (2, 3, 4, 7, 8)), {}),
    "leading dimensions broadcast": (((2, 4, 5, 8), (1, 4, 7, 8), (1, 1, 7, 8)), {}),
    "scale": (((2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)), {"scale": 0.2}),
    "causal": (((2, 4, 6, 8), (2, 4, 6, 8), (2, 4, 6, 8)), {"is_causal": True}),
    "causal is top-left, more keys": (
        ((2, 4, 5, 8), (2, 4, 9, 8), (2, 4, 9, 8)), {"is_causal": True}
    ),
    "causal is top-left, more queries": (
        ((2, 4, 9, 8), (2, 4, 5, 8), (2, 4, 5, 8)), {"is_causal": True}
    ),
    "causal without leading dimensions": (((9, 8), (9, 8), (9, 8)), {"is_causal": True}),
    "grouped": (((2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)), {"enable_gqa": True}),
    "grouped, causal": (
        ((2, 6, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8)), {"enable_gqa": True, "is_causal": True}
    ),
    "grouped, three leading dimensions": (
        ((2, 3, 6, 5, 8), (2, 3, 2, 7, 8), (2, 3, 2, 7, 8)), {"enable_gqa": True}
    ),
}  # fmt: skip
MASKS = {
    "(S,T)": ((2, 4, 5, 8), (5, 7)),
    "(T,)": ((2, 4, 5, 8), (1, 7)),
    "(B,1,S,T)": ((2, 4, 5, 8), (2, 1, 5, 7)),
    "(B,1,1,T)": ((2, 4, 5, 8), (2, 1, 1, 7)),
    "(B,H,S,T)": ((2, 4, 5, 8), (2, 4, 5, 7)),
    "(S,T) without leading dimensions": ((5, 8), (5, 7)),
    "(B,S,T) with one leading dimension": ((3, 5, 8), (3, 5, 7)),
    "(1,S,T) with one leading dimension": ((3, 5, 8), (1, 5, 7)),
    "five dimensions": ((2, 3, 4, 5, 8), (2, 3, 4, 5, 7)),
    "(S,T) with five dimensions": ((2, 3, 4, 5, 8), (5, 7)),
}


def compare(shapes: tuple[tuple[int, ...], ...], options: dict[str, Any]) -> None:
    """Output and gradients equal torch's, in float64."""
    tensors = [torch.randn(s, dtype=torch.float64) for s in shapes]
    results = []
    for function in (llama_fast.scaled_dot_product_attention, F.scaled_dot_product_attention):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with sdpa_kernel(SDPBackend.MATH):
            out = function(*leaves, **options)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize(("shapes", "options"), CASES.values(), ids=CASES.keys())
def test_equals_torch(
    shapes: tuple[tuple[int, ...], ...], options: dict[str, Any], backend: str
) -> None:
    compare(shapes, options)


@pytest.mark.parametrize("mask_type", ("bool", "float"))
@pytest.mark.parametrize(("query", "mask"), MASKS.values(), ids=MASKS.keys())
def test_masks_equal_torch(
    query: tuple[int, ...], mask: tuple[int, ...], mask_type: str, backend: str
) -> None:
    attn_mask = torch.randn(mask, dtype=torch.float64)
    if mask_type == "bool":
        attn_mask = attn_mask > -0.5
    key = (*query[:-2], 7, 8)
    compare((query, key, key), {"attn_mask": attn_mask})


def test_gradient_of_a_mask(backend: str) -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=torch.float64) for _ in range(3))
    grads = []
    for function in (llama_fast.scaled_dot_product_attention, F.scaled_dot_product_attention):
        mask = torch.linspace(-1, 1, 25, dtype=torch.float64).view(5, 5).requires_grad_()
        grads.append(torch.autograd.grad(function(q, k, v, mask).square().sum(), mask)[0])
    torch.testing.assert_close(*grads)


def test_dropout_keeps_the_mean(backend: str) -> None:
    q, k = torch.zeros(1, 1, 50, 8), torch.zeros(1, 1, 400, 8)
    out = llama_fast.scaled_dot_product_attention(q, k, torch.ones(1, 1, 400, 8), dropout_p=0.5)
    # Each row is a mean of 400 numbers that are 0 or 2: standard deviation 1 / 20.
    assert (out - 1).abs().max() < 5 / 20 and (out.mean() - 1).abs() < 5 / (20 * 50**0.5)


def test_signature_is_torchs() -> None:
    """Names, order and defaults, as the first lines of torch's docstring give them."""
    described = F.scaled_dot_product_attention.__doc__.partition(" -> ")[0]
    torchs = re.findall(r"(\w+)(?:=([\w.]+))?[,)]", described)
    ours = inspect.signature(llama_fast.scaled_dot_product_attention).parameters.values()
    empty = inspect.Parameter.empty
    assert [(p.name, "" if p.default is empty else str(p.default)) for p in ours] == torchs
