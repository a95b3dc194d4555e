"""SwiGLU: output and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import llama_fast
from tests.ops.criterion import DTYPES, Results, check, gradients

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
        grads = gradients([out], {"gate": gate, "up": up}, inputs_dtype, seed)
        return {"out": out.detach()} | grads

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
    contiguous = llama_fast.swiglu(gate.contiguous(), up.contiguous())
    if backend == "reference":  # on Arm, torch rounds strided numbers otherwise
        torch.testing.assert_close(ours, contiguous)
    else:
        assert torch.equal(ours, contiguous)
    assert llama_fast.swiglu(gate[:0], up[:0]).shape == (0, 5)
    transposed = llama_fast.swiglu(torch.randn(4, 3).T, torch.randn(3, 4))
    assert transposed.shape == (3, 4)


@pytest.mark.large
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("halves", (False, True), ids=["", "halves"])
def test_large_outputs(halves: bool, dtype: torch.dtype, backend: str) -> None:
    """Outputs that go around the caches, rows at any alignment: each row is what it is alone."""
    width = 5001
    rows = 20 * 2**20 // (width * dtype.itemsize)
    if halves:
        gate, up = torch.randn(rows, 2 * width, dtype=dtype, requires_grad=True).chunk(2, dim=-1)
    else:
        gate, up = (torch.randn(rows, width, dtype=dtype, requires_grad=True) for _ in range(2))
    out = llama_fast.swiglu(gate, up)
    upstream = torch.randn_like(out)
    grads = torch.autograd.grad(out, (gate, up), upstream)
    for row in (0, 1, rows // 2, rows - 1):
        leaves = [t[row].detach().clone().requires_grad_() for t in (gate, up)]
        alone = llama_fast.swiglu(*leaves)
        torch.testing.assert_close(out[row], alone)
        for whole, part in zip(
            grads, torch.autograd.grad(alone, leaves, upstream[row]), strict=True
        ):
            torch.testing.assert_close(whole[row], part)


def test_strides_of_gradients(backend: str) -> None:
    """Operands and upstream gradients in every order of dimensions."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        gate, up, upstream = (
            torch.randn(3, 4, 5).permute(order).requires_grad_() for _ in range(3)
        )
        results = []
        for leaves in ((gate, up), [t.detach().contiguous().requires_grad_() for t in (gate, up)]):
            out = llama_fast.swiglu(*leaves)
            results.append((out, *torch.autograd.grad(out, leaves, upstream)))
        for ours, same in zip(*results, strict=True):
            torch.testing.assert_close(ours, same)
        expanded = llama_fast.swiglu(gate, up).sum()  # an upstream gradient without memory
        grads = torch.autograd.grad(expanded, (gate, up))
        ones = torch.autograd.grad(llama_fast.swiglu(gate, up), (gate, up), torch.ones_like(gate))
        for ours, same in zip(grads, ones, strict=True):
            torch.testing.assert_close(ours, same)


def test_strides_past_2_31(backend: str) -> None:
    far = torch.empty(2**31 + 100, dtype=torch.bfloat16)  # its pages are never touched
    gate = far.as_strided((2, 8), (2**31 + 50, 1)).normal_()
    assert torch.equal(llama_fast.swiglu(gate, gate), llama_fast.swiglu(gate.clone(), gate.clone()))


def test_forward_mode(backend: str) -> None:
    gate, up, tangent = torch.randn(3, 8).unbind(0)
    derivatives = torch.func.jvp(lambda g: llama_fast.swiglu(g, up), (gate,), (tangent,))
    expected = torch.func.jvp(lambda g: F.silu(g) * up, (gate,), (tangent,))
    for ours, same in zip(derivatives, expected, strict=True):
        torch.testing.assert_close(ours, same)
