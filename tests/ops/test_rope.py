"""Rotary position embedding: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import llama_fast
from tests.ops.criterion import DTYPES, Results, check, gradients

OP = "rope"


@dataclass(frozen=True)
class Case:
    """Shapes (B,H,S,D) of q, the heads K of k, and the layout."""

    why: str
    B: int = 2
    H: int = 4
    K: int = 2
    S: int = 9
    D: int = 16
    per_sequence: bool = False
    interleaved: bool = False

    @property
    def id(self) -> str:
        return self.why.partition(":")[0].replace(" ", "-").replace(",", "")


CASES = [
    Case("plain"),
    Case("one pair", D=2),
    Case("an odd number of pairs", D=6),
    Case("Llama", D=128, H=2, K=1),
    Case("one query: decoding", S=1, H=8, K=1),
    Case("tables per sequence: left-padded batches", per_sequence=True),
    Case("interleaved", interleaved=True),
    Case("interleaved, an odd number of pairs", D=6, interleaved=True),
    Case("interleaved, tables per sequence", interleaved=True, per_sequence=True),
    Case("many positions", B=1, S=600, D=8),
    Case("more pairs than a vector, and some over", D=90),
    Case("interleaved, more pairs than a vector, and some over", D=90, interleaved=True),
]


def runner(case: Case) -> Callable[..., Results]:
    def run(
        function: Callable[..., Any], inputs_dtype: torch.dtype, dtype: torch.dtype, seed: int
    ) -> Results:
        g = torch.Generator().manual_seed(seed)
        q, k = (
            torch.randn(case.B, heads, case.S, case.D, generator=g, dtype=torch.float64)
            .to(inputs_dtype).to(dtype).requires_grad_()
            for heads in (case.H, case.K)
        )  # fmt: skip
        table = (case.B,) * case.per_sequence + (case.S, case.D // 2)
        angle = 1000 * torch.rand(table, generator=g, dtype=torch.float64)
        cos, sin = (t.to(inputs_dtype).to(dtype) for t in (angle.cos(), angle.sin()))
        outputs = function(q, k, cos, sin, interleaved=case.interleaved)
        grads = gradients(outputs, {"q": q, "k": k}, inputs_dtype, seed)
        return {"q": outputs[0].detach(), "k": outputs[1].detach()} | grads

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_grid(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.rope, runner(case), dtype)


@pytest.mark.parametrize("interleaved", (False, True))
def test_keeps_lengths_and_relative_positions(interleaved: bool, backend: str) -> None:
    """A rotation: q . k depends on the distance of their positions alone."""
    S, D = 12, 8
    dtype = torch.float32 if backend == "cuda" else torch.float64
    angle = torch.arange(S, dtype=dtype)[:, None] * torch.rand(D // 2, dtype=dtype)
    one = torch.randn(2, D, dtype=dtype)
    q, k = (x.expand(1, 1, S, D) for x in one)
    q, k = llama_fast.rope(q, k, angle.cos(), angle.sin(), interleaved=interleaved)
    torch.testing.assert_close(q.norm(dim=-1), one[0].norm().expand(1, 1, S))
    scores = (q @ k.mT)[0, 0]
    for distance in range(-S + 1, S):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_interleaved_is_a_permutation_of_the_other_layout(backend: str) -> None:
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 1, 5, 8)
    angle = torch.rand(5, 4)
    order = torch.arange(8).view(2, 4).T.flatten()  # 0 4 1 5 2 6 3 7
    halves = llama_fast.rope(q, k, angle.cos(), angle.sin())
    pairs = llama_fast.rope(
        q[..., order], k[..., order], angle.cos(), angle.sin(), interleaved=True
    )
    for a, b in zip(halves, pairs, strict=True):
        assert torch.equal(a[..., order], b)


def test_tables_keep_their_precision(backend: str) -> None:
    """float32 tables are not rounded to the 16 bits of the heads."""
    q, k = (torch.randn(1, 1, 5, 8).bfloat16() for _ in range(2))
    angle = torch.rand(5, 4)
    rotated = llama_fast.rope(q, k, angle.cos(), angle.sin())
    wide = llama_fast.rope(q.float(), k.float(), angle.cos(), angle.sin())
    for a, b in zip(rotated, wide, strict=True):
        assert torch.equal(a, b.bfloat16())


def test_strides_and_empty(backend: str) -> None:
    angle = torch.rand(5, 4)
    q, k = (torch.randn(2, 5, heads, 8).transpose(1, 2) for heads in (4, 2))
    ours = llama_fast.rope(q, k, angle.cos(), angle.sin())
    same = llama_fast.rope(q.contiguous(), k.contiguous(), angle.cos(), angle.sin())
    for a, b in zip(ours, same, strict=True):
        assert torch.equal(a, b)
    for out in llama_fast.rope(q[:0], k[:0], angle.cos(), angle.sin()):
        assert out.shape[0] == 0
    for out in llama_fast.rope(q[:, :, :0], k[:, :, :0], angle[:0], angle[:0]):
        assert out.shape[2] == 0


@pytest.mark.parametrize("interleaved", (False, True))
def test_any_strides(interleaved: bool, backend: str) -> None:
    """Heads cut out of one projection, transposed, expanded; tables likewise."""
    qkv = torch.randn(2, 5, 4 + 2 + 2, 8)
    q, k = (t.transpose(1, 2) for t in (qkv[:, :, :4], qkv[:, :, 4:6]))
    cos, sin = torch.rand(5, 8)[:, ::2], torch.rand(4, 5).T
    pairs = [(q, k), (q.mT.contiguous().mT, k[..., ::1].flip(0)), (q[:1].expand(2, 4, 5, 8), k)]
    for a, b in pairs:
        ours = llama_fast.rope(a, b, cos, sin, interleaved=interleaved)
        plain = (t.contiguous() for t in (a, b, cos, sin))
        for x, y in zip(ours, llama_fast.rope(*plain, interleaved=interleaved), strict=True):
            assert torch.equal(x, y)


@pytest.mark.not_for("reference")  # it leaves layouts to torch
def test_layout(backend: str) -> None:
    """What lies in memory as (B,S,H,D) comes back so, and its gradient too."""
    q, k = (torch.randn(2, 5, heads, 8, requires_grad=True) for heads in (4, 2))
    rotated = llama_fast.rope(q.transpose(1, 2), k.mT.mT.transpose(1, 2), *torch.rand(2, 5, 4))
    for x, out in zip((q, k), rotated, strict=True):
        assert out.transpose(1, 2).is_contiguous()
        (grad,) = torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
        assert grad.is_contiguous()
    for out in llama_fast.rope(
        torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), *torch.rand(2, 5, 4)
    ):
        assert out.is_contiguous()


@pytest.mark.large
@pytest.mark.parametrize("per_sequence", (False, True))
@pytest.mark.parametrize("interleaved", (False, True))
def test_gradients_of_the_tables(interleaved: bool, per_sequence: bool, backend: str) -> None:
    """Learned angles: first and second derivatives in cos and sin too."""
    shapes = ((2, 2, 3, 4), (2, 1, 3, 4), *[(2,) * per_sequence + (3, 2)] * 2)
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def function(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return llama_fast.rope(*x, interleaved=interleaved)

    assert torch.autograd.gradcheck(function, leaves)
    upstream = tuple(torch.randn_like(out) for out in function(*leaves))
    assert torch.autograd.gradgradcheck(function, leaves, upstream, fast_mode=True)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.large
def test_large_outputs(dtype: torch.dtype, backend: str) -> None:
    """Outputs that go around the caches: each position is what it is alone."""
    S, D = 1000, 64
    H = 20 * 2**20 // (S * D * dtype.itemsize)
    q, k = (torch.randn(1, S, heads, D, dtype=dtype).transpose(1, 2) for heads in (H, 2))
    cos, sin = torch.rand(S, D // 2), torch.rand(S, D // 2)
    rotated = llama_fast.rope(q, k, cos, sin)
    few = slice(470, 540)
    parts = llama_fast.rope(q[:, :, few], k[:, :, few], cos[few], sin[few])
    for whole, part in zip(rotated, parts, strict=True):
        torch.testing.assert_close(whole[:, :, few], part)


def test_strides_past_2_31(backend: str) -> None:
    far = torch.empty(2**31 + 100, dtype=torch.bfloat16)  # its pages are never touched
    q = far.as_strided((1, 2, 1, 8), (1, 2**31 + 50, 8, 1)).normal_()
    table = torch.rand(1, 4)
    near = llama_fast.rope(q.clone(), q.clone(), table, table)
    for ours, same in zip(llama_fast.rope(q, q, table, table), near, strict=True):
        assert torch.equal(ours, same)


def test_forward_mode(backend: str) -> None:
    """A rotation is linear: the derivative is the rotation of the tangent."""
    q, tangent, table = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), torch.rand(3, 2)
    _, derivative = torch.func.jvp(
        lambda q: llama_fast.rope(q, q, table, table)[0], (q,), (tangent,)
    )
    torch.testing.assert_close(derivative, llama_fast.rope(tangent, tangent, table, table)[0])
