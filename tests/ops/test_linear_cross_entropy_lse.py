"""The gradient of linear cross-entropy's log-sum-exp."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import llama_fast
from tests.ops.criterion import DTYPES, check
from tests.ops.linear_cross_entropy_cases import Case, runner
from tests.ops.test_linear_cross_entropy import products_of

OP = "linear_cross_entropy"

CASES = [
    Case("plain"),
    Case("one class", V=1),
    Case("some targets ignored", ignored=True),
    Case("shift of a batch, bias", tokens=(3, 7), bias=True, options={"shift": True}),
    Case("several blocks of classes", tokens=(9,), E=24, V=32000),
    Case("every option", tokens=(3, 7), ignored=True, bias=True, class_weights=True,
         options={"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 1e-3, "shift": True}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_gradient(case: Case, reduction: str, dtype: torch.dtype, kernel: str) -> None:
    options = {**case.options, "reduction": reduction, "return_stats": True}
    case = replace(case, options=options, grad_lse=True)
    check(OP, llama_fast.linear_cross_entropy, runner(case), dtype)


def inputs(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, w = torch.randn(9, 8) * scale, torch.randn(30, 8)
    target = torch.randint(0, 30, (9,))
    target[4] = -100
    return x.requires_grad_(), w.requires_grad_(), target


def test_z_loss_by_hand(backend: str) -> None:
    x, w, target = inputs()
    loss = llama_fast.linear_cross_entropy(x, w, target, z_loss=0.1)
    expected = torch.autograd.grad(loss, (x, w))
    loss, stats = llama_fast.linear_cross_entropy(x, w, target, return_stats=True)
    by_hand = loss + 0.1 * stats.lse[target != -100].square().mean()
    for got, plain in zip(torch.autograd.grad(by_hand, (x, w)), expected, strict=True):
        torch.testing.assert_close(got, plain)


def test_ignored_tokens_have_none(kernel: str) -> None:
    """Their lse is a placeholder: whatever comes in for it, and whatever stands there."""
    x, w, target = inputs()
    if kernel != "reference":
        with torch.no_grad():
            x[4] = torch.nan
    _, stats = llama_fast.linear_cross_entropy(x, w, target, return_stats=True)
    upstream = torch.ones(9)
    upstream[4] = 1000.0
    grads = torch.autograd.grad(stats.lse, (x, w), upstream)
    kept = [i for i in range(9) if i != 4]
    few = x.detach()[kept].requires_grad_()
    expected = torch.autograd.grad((few @ w.T).logsumexp(1).sum(), (few, w))
    assert (grads[0][4] == 0).all()
    torch.testing.assert_close(grads[0][kept], expected[0])
    torch.testing.assert_close(grads[1], expected[1])


@pytest.mark.parametrize("tokens", (0, 4), ids=["no tokens", "all ignored"])
def test_nothing_to_predict(tokens: int, backend: str) -> None:
    x, w = torch.ones(tokens, 8, requires_grad=True), torch.ones(11, 8, requires_grad=True)
    target = torch.full((tokens,), -100)
    _, stats = llama_fast.linear_cross_entropy(x, w, target, return_stats=True)
    for grad in torch.autograd.grad(stats.lse.sum(), (x, w)):
        assert (grad == 0).all()


@pytest.mark.parametrize("upstream", (2.0**-20, 2.0**12), ids=["small", "large"])
def test_half_precision_does_not_lose_it(upstream: float, backend: str) -> None:
    """Rows of gradients that float16 would round to zero, or to infinity, before the product."""
    grads = []
    for dtype in (torch.float16, torch.float64):
        torch.manual_seed(0)
        x = torch.randn(6, 8).half().to(dtype).requires_grad_()
        w = (4 * torch.randn(110, 8)).half().to(dtype).requires_grad_()
        target = torch.arange(6)
        _, stats = llama_fast.linear_cross_entropy(x, w, target, return_stats=True)
        grads.append(torch.autograd.grad(stats.lse.sum() * upstream, (x, w)))
    for got, expected in zip(*grads, strict=True):
        atol = max(2e-3 * expected.abs().max().item(), 2.0**-23)
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("used", ("loss", "lse", "both"))
def test_costs_a_sweep_only_where_it_is_used(used: str) -> None:
    """Three products for loss and gradients; three more for the gradient of lse."""
    x, w = torch.randn(40, 64, requires_grad=True), torch.randn(999, 64, requires_grad=True)

    def run() -> None:
        loss, stats = llama_fast.linear_cross_entropy(x, w, torch.arange(40), return_stats=True)
        outputs = {"loss": loss, "lse": stats.lse.sum()}
        sum(v for k, v in outputs.items() if used in (k, "both")).backward()

    with llama_fast.use_backend(linear_cross_entropy="chunked"):
        assert products_of(run) == (3 if used == "loss" else 6)


@pytest.mark.compile
@pytest.mark.parametrize("used", ("loss", "lse"))
def test_compiled_costs_no_more(used: str) -> None:
    """torch.compile makes zeros for a gradient that is missing; no sweep is made for them."""
    sweeps = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        sweeps.append(graph.code.count("llama_fast.linear_cross_entropy"))
        return graph

    def function(x: torch.Tensor, w: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss, stats = llama_fast.linear_cross_entropy(x, w, target, return_stats=True)
        return loss if used == "loss" else loss.detach() + stats.lse.sum()

    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    x, w, target = inputs()
    ours = torch.autograd.grad(compiled(x, w, target), (x, w))
    plain = torch.autograd.grad(function(x, w, target), (x, w))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
    assert sweeps == ([1, 0] if used == "loss" else [1, 1])


def test_targets_may_be_overwritten_before_the_backward(backend: str) -> None:
    """Which tokens are ignored is what it was."""
    x, w, target = inputs()
    _, stats = llama_fast.linear_cross_entropy(x, w, target, return_stats=True)
    expected = torch.autograd.grad(stats.lse.sum(), (x, w), retain_graph=True)
    target.fill_(-100)
    for got, before in zip(torch.autograd.grad(stats.lse.sum(), (x, w)), expected, strict=True):
        assert torch.equal(got, before)
