"""RMSNorm: output, residual sum and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import llama_fast
from tests.ops.criterion import DTYPES, Results, check, gradients

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
    heads: bool = False  # (B,H,S,E) in the memory of (B,S,H,E)

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
    Case("a row of several blocks", shape=(3, 2500)),
    Case("rows too long to keep, with residual", shape=(3, 4100), residual=True),
    Case("several blocks of rows, each of several strips", shape=(9001, 8)),
    Case("heads", shape=(2, 3, 5, 16), residual=True, heads=True),
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
        views = {
            name: t.transpose(1, 2) if case.heads and name != "weight" else t
            for name, t in leaves.items()
        }
        out = function(**views, eps=case.eps, offset=case.offset)
        results = {"y": out[0], "x": out[1]} if case.residual else {"y": out}
        grads = gradients(results.values(), leaves, inputs_dtype, seed)
        return {name: t.detach() for name, t in results.items()} | grads

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


MIXED = ("bfloat16 float32", "float16 float32", "float32 bfloat16", "bfloat16 float16",
         "bfloat16 float64", "float64 float16")  # fmt: skip


@pytest.mark.parametrize("dtypes", MIXED)
def test_residual_of_another_dtype(dtypes: str, backend: str) -> None:
    """x is the sum as torch makes it, y its norm in the input's dtype; as under autocast."""
    x, r = (torch.randn(5, 40).to(getattr(torch, name)).requires_grad_() for name in dtypes.split())
    w = torch.randn(40, requires_grad=True)
    y, total = llama_fast.rms_norm(x, w, residual=r)
    same = (x + r).detach().requires_grad_()
    expected = llama_fast.rms_norm(same, w).to(x.dtype)
    assert torch.equal(total, same) and total.dtype == same.dtype
    assert torch.equal(y, expected) and y.dtype == x.dtype
    upstream, other = torch.randn(5, 40).to(y.dtype), torch.randn(5, 40).to(total.dtype)
    grads = torch.autograd.grad((y, total), (x, w, r), (upstream, other))
    assert [g.dtype for g in grads] == [x.dtype, w.dtype, r.dtype]
    grad_x, grad_w = torch.autograd.grad((expected, same), (same, w), (upstream, other))
    assert torch.equal(grads[0], grad_x.to(x.dtype)) and torch.equal(grads[2], grad_x.to(r.dtype))
    assert torch.equal(grads[1], grad_w)


def test_autocast(backend: str) -> None:
    """The stream stays float32; what the projections give and read has 16 bits."""
    stream = torch.randn(3, 32, requires_grad=True)
    projection, w = torch.randn(32, 32, requires_grad=True), torch.ones(32, requires_grad=True)
    with torch.autocast(stream.device.type, dtype=torch.bfloat16):
        projected = torch.nn.functional.linear(stream, projection)
        y, total = llama_fast.rms_norm(projected, w, residual=stream)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    grads = torch.autograd.grad((y.float() + total).sum(), (stream, projection, w))
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.large
def test_large_outputs(dtype: torch.dtype, backend: str) -> None:
    """Outputs that go around the caches: each row is what it is alone, with its gradients."""
    rows = 20 * 2**20 // (96 * dtype.itemsize)
    x, r = (torch.randn(rows, 96, dtype=dtype, requires_grad=True) for _ in range(2))
    w = torch.randn(96, requires_grad=True)
    outputs = llama_fast.rms_norm(x, w, residual=r)
    upstream = [torch.randn_like(t) for t in outputs]
    grads = torch.autograd.grad(outputs, (x, r, w), upstream)
    for few in (slice(0, 50), slice(rows // 2, rows // 2 + 50), slice(rows - 50, rows)):
        small = llama_fast.rms_norm(x[few], w, residual=r[few])
        small_grads = torch.autograd.grad(small, (x, r), [u[few] for u in upstream])
        for whole, part in zip(outputs, small, strict=True):
            torch.testing.assert_close(whole[few], part)
        for whole, part in zip(grads, small_grads, strict=False):
            torch.testing.assert_close(whole[few], part[few])
    with llama_fast.use_backend(rms_norm="reference"):
        (stock,) = torch.autograd.grad(llama_fast.rms_norm(x, w, residual=r)[0], w, upstream[0])
    norms = (outputs[1].double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    exact = (upstream[0].double() * outputs[1].double() / norms).sum(0)
    error, stock_error = ((g - exact).square().mean().sqrt() for g in (grads[2], stock))
    assert error <= stock_error + torch.finfo(torch.float32).eps * exact.square().mean().sqrt()


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


def test_strides_past_2_31(backend: str) -> None:
    far = torch.empty(2**31 + 100, dtype=torch.bfloat16)  # its pages are never touched
    x = far.as_strided((2, 8), (2**31 + 50, 1)).normal_()
    w = torch.randn(8)
    for function in (llama_fast.rms_norm, lambda x, w: llama_fast.rms_norm(x, w, residual=x)[1]):
        assert torch.equal(function(x, w), function(x.clone(), w))


def test_layout_of_heads(backend: str) -> None:
    """A view of (B,S,H,E) gives one: attention reads it without a copy."""
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)
    for out in (
        llama_fast.rms_norm(x, torch.ones(8)),
        *llama_fast.rms_norm(x, x[0, 0, 0], residual=x),
    ):
        assert out.stride() == x.stride()


def test_forward_mode(backend: str) -> None:
    x, w, tangent = torch.randn(3, 8), torch.randn(8), torch.randn(3, 8)
    with llama_fast.use_backend(rms_norm="reference"):
        expected = torch.func.jvp(lambda x: llama_fast.rms_norm(x, w), (x,), (tangent,))
    derivatives = torch.func.jvp(lambda x: llama_fast.rms_norm(x, w), (x,), (tangent,))
    for ours, same in zip(derivatives, expected, strict=True):
        torch.testing.assert_close(ours, same)
