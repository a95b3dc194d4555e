"""SwiGLU: output and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import llama_fast
from tests.ops.attention_cases import upstream_gradient
from tests.ops.criterion import DTYPES, Results, check

OP = "swiglu"

# Why, shape, spread of the gate.
CASES = {
    "plain": ((5, 64), 1.0),
    "one number": ((1,), 1.0),
    "odd sizes": ((7, 37), 1.0),
    "SmolLM2": ((3, 5, 1536), 1.0),
    "no dimension": ((), 1.0),
    "large gates: silu is linear or zero": ((5, 64), 50.0),
    "small gates: silu is half of its input": ((5, 64), 1e-3),
}


def runner(shape: tuple[int, ...], spread: float) -> Callable[..., Results]:
    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        g = torch.Generator().manual_seed(seed)
        gate, up = (
            (size * torch.randn(shape, generator=g, dtype=torch.float64))
            .to(inputs_dtype).to(dtype).requires_grad_()
            for size in (spread, 1.0)
        )  # fmt: skip
        out = function(gate, up)
        grads = torch.autograd.grad(out, (gate, up), upstream_gradient(out, inputs_dtype, seed))
        return dict(zip(("out", "grad gate", "grad up"), (out.detach(), *grads), strict=True))

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "spread"), CASES.values(), ids=CASES.keys())
def test_grid(shape: tuple[int, ...], spread: float, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.swiglu, runner(shape, spread), dtype)


def test_special_values_travel_as_in_torch(backend: str) -> None:
    values = [torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 100.0, -100.0, 0.0, -0.0]
    gate, up = (t.flatten() for t in torch.meshgrid(*[torch.tensor(values)] * 2, indexing="ij"))
    results = []
    for function in (llama_fast.swiglu, lambda g, u: F.silu(g) * u):
        leaves = [t.clone().requires_grad_() for t in (gate, up)]
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_strides_and_empty(backend: str) -> None:
    gate, up = torch.randn(6, 10).chunk(2, dim=-1)  # a fused projection
    ours = llama_fast.swiglu(gate, up)
    assert torch.equal(ours, llama_fast.swiglu(gate.contiguous(), up.contiguous()))
    assert llama_fast.swiglu(gate[:0], up[:0]).shape == (0, 5)
    transposed = llama_fast.swiglu(torch.randn(4, 3).T, torch.randn(3, 4))
    assert transposed.shape == (3, 4)
