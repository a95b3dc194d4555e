"""RMSNorm: output, residual sum and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import llama_fast
from tests.ops.attention_cases import upstream_gradient
from tests.ops.criterion import DTYPES, Results, check

OP = "rms_norm"


@dataclass(frozen=True)
class Case:
    """Shape of the input, and the options."""

    why: str
    shape: tuple[int, ...] = (5, 64)
    residual: bool = False
    spread: float = 1.0
    eps: float = 1e-6
    offset: float = 0.0

    @property
    def id(self) -> str:
        return self.why.partition(":")[0].replace(" ", "-").replace(",", "")


CASES = [
    Case("plain"),
    Case("one feature", shape=(9, 1)),
    Case("an odd number of features", shape=(7, 37)),
    Case("SmolLM2", shape=(3, 5, 576)),
    Case("Llama", shape=(2, 4096)),
    Case("one dimension", shape=(64,)),
    Case("four dimensions: norm of queries", shape=(2, 3, 4, 16)),
    Case("many rows, short ones", shape=(501, 8)),
    Case("residual", residual=True),
    Case("residual of a batch", shape=(2, 5, 33), residual=True),
    Case("offset 1: Gemma", offset=1.0),
    Case("offset and residual", offset=1.0, residual=True),
    Case("input so small that eps decides", spread=1e-4, eps=1e-5),
    Case("large input", spread=100.0),
    Case("eps 0", eps=0.0),
]


def runner(case: Case) -> Callable[..., Results]:
    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        g = torch.Generator().manual_seed(seed)
        shapes = {"input": case.shape, "weight": case.shape[-1:]}
        if case.residual:
            shapes["residual"] = case.shape
        leaves = {
            name: (torch.randn(shape, generator=g, dtype=torch.float64)
                   * (1.0 if name == "weight" else case.spread))
            .to(inputs_dtype).to(dtype).requires_grad_()
            for name, shape in shapes.items()
        }  # fmt: skip
        out = function(**leaves, eps=case.eps, offset=case.offset)
        results = {"y": out[0], "x": out[1]} if case.residual else {"y": out}
        upstream = [upstream_gradient(r, inputs_dtype, seed) for r in results.values()]
        grads = torch.autograd.grad(list(results.values()), list(leaves.values()), upstream)
        results = {name: t.detach() for name, t in results.items()}
        return results | {f"grad {n}": g for n, g in zip(leaves, grads, strict=True)}

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_grid(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.rms_norm, runner(case), dtype)


def test_residual_is_added_once_and_returned(backend: str) -> None:
    """x is exactly the sum in the input's dtype, and y exactly the norm of x."""
    x, r = (torch.randn(4, 32).bfloat16() for _ in range(2))
    w = torch.randn(32).bfloat16()
    y, total = llama_fast.rms_norm(x, w, residual=r)
    assert torch.equal(total, x + r)
    assert torch.equal(y, llama_fast.rms_norm(total, w))


@pytest.mark.parametrize("weight_dtype", (torch.float32, torch.float64, torch.float16), ids=str)
def test_weight_of_another_dtype(weight_dtype: torch.dtype, backend: str) -> None:
    x = torch.randn(4, 32).bfloat16().requires_grad_()
    w = torch.randn(32, dtype=weight_dtype, requires_grad=True)
    y = llama_fast.rms_norm(x, w)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().sum(), (x, w))
    assert [g.dtype for g in grads] == [torch.bfloat16, weight_dtype]


@pytest.mark.parametrize("shape", ((0, 8), (3, 0), (2, 0, 8)), ids=str)
def test_empty(shape: tuple[int, ...], backend: str) -> None:
    x = torch.randn(shape, requires_grad=True)
    w = torch.randn(shape[-1], requires_grad=True)
    y = llama_fast.rms_norm(x, w)
    assert y.shape == shape
    grads = torch.autograd.grad(y.sum(), (x, w))
    assert [g.shape for g in grads] == [x.shape, w.shape]
    assert (grads[1] == 0).all()


def test_strides(backend: str) -> None:
    w = torch.randn(32)[::2]
    for x in (torch.randn(16, 5).T, torch.randn(5, 32)[:, ::2], torch.randn(1, 16).expand(5, 16)):
        ours = llama_fast.rms_norm(x, w)
        torch.testing.assert_close(ours, llama_fast.rms_norm(x.clone(), w.clone()))


def test_special_values(backend: str) -> None:
    """inf and NaN spoil their own row, as in torch, and no other."""
    x = torch.randn(4, 8)
    x[1, 2], x[2, 3] = torch.inf, torch.nan
    w = torch.randn(8)
    expected = torch.nn.functional.rms_norm(x, (8,), w, 1e-6)
    torch.testing.assert_close(llama_fast.rms_norm(x, w), expected, equal_nan=True)


def test_a_row_of_zeros(backend: str) -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = llama_fast.rms_norm(x, torch.ones(8))
    assert (y == 0).all() and torch.autograd.grad(y.sum(), x)[0].isfinite().all()
