"""Linear cross-entropy: loss, gradients and statistics; what it costs; its chunks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import llama_fast
from llama_fast.ops import chunked
from tests.ops.criterion import DTYPES, check
from tests.ops.linear_cross_entropy_cases import Case, make_tensors, runner

OP = "linear_cross_entropy"


CASES = [
    Case("plain"),
    Case("one token", tokens=(1,)),
    Case("one class", V=1),
    Case("one feature", E=1),
    Case("batch and sequence dimensions", tokens=(3, 7)),
    Case("three token dimensions", tokens=(2, 3, 4)),
    Case("no token dimension: torch's (E,) form", tokens=()),
    Case("Llama 2's vocabulary", tokens=(9,), E=24, V=32000),
    Case("some targets ignored", ignored=True),
    Case("bias", bias=True, ignored=True),
    Case("class weights", class_weights=True, ignored=True),
    Case("label smoothing", options={"label_smoothing": 0.1}, ignored=True),
    Case("softcap", options={"softcap": 1.5}, ignored=True),
    Case("z-loss and class weights: two different means", ignored=True, class_weights=True,
         options={"z_loss": 1e-2}),
    Case("sum", options={"reduction": "sum"}, ignored=True),
    Case("none: an upstream gradient per token", options={"reduction": "none"}, ignored=True),
    Case("none over a batch", tokens=(3, 7), options={"reduction": "none"}, bias=True),
    Case("shift", tokens=(3, 7), options={"shift": True}, ignored=True),
    Case("shift of one sequence", tokens=(9,), options={"shift": True}),
    Case("shift without reduction", tokens=(3, 7), options={"shift": True, "reduction": "none"}),
    Case("every option", tokens=(3, 7), ignored=True, bias=True, class_weights=True,
         options={"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 1e-3, "shift": True,
                  "return_stats": True}),
    Case("every option, no reduction", tokens=(3, 7), ignored=True, bias=True, class_weights=True,
         options={"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 1e-3, "return_stats": True,
                  "reduction": "none"}),
    Case("every option, sum", ignored=True, bias=True, class_weights=True,
         options={"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 1e-3, "return_stats": True,
                  "reduction": "sum"}),
]  # fmt: skip


# Logits further apart than the codes count in which the C++ kernel keeps those of bfloat16. In
# float64 the roundings of torch's own matrix products are what is left of the errors here.
FAR = [
    Case("softcap, logits 60 apart", V=700,
         scale=20, options={"softcap": 30.0}),
    Case("softcap and smoothing, logits 60 apart: the derivative of the softcap counts", V=700,
         scale=20, options={"softcap": 30.0, "label_smoothing": 0.1}),
    Case("softcap 300, smoothing and class weights, logits hundreds apart", V=700, scale=100,
         class_weights=True, options={"softcap": 300.0, "label_smoothing": 0.1}),
    Case("logits hundreds apart, smoothing", V=700, scale=100, options={"label_smoothing": 0.1}),
]  # fmt: skip


# Beyond what the kernels keep in memory at once. In float64 torch's own matrix products, too, err
# by more than the yardstick here.
LARGE = [
    Case("more rows than are kept at once, and a last block of one class", tokens=(601,), V=49921,
         E=24),
    Case("many rows of few classes: chunks summed in working memory", tokens=(3000,), V=6000, E=40),
    Case("many rows, every gradient", tokens=(1500,), V=9000, E=24, ignored=True,
         class_weights=True, bias=True, options={"label_smoothing": 0.1}),
]  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of five rows, and 16-bit weights widened in small pieces."""
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 0)
    monkeypatch.setattr(chunked, "MINIMUM_ROWS", 5)
    monkeypatch.setattr(chunked, "WIDEN_ELEMENTS", 100)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_grid(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.linear_cross_entropy, runner(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", FAR, ids=lambda c: c.id)
def test_far_apart(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.linear_cross_entropy, runner(case), dtype)


@pytest.mark.large
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
def test_large(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.linear_cross_entropy, runner(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.V < 1000], ids=lambda c: c.id)
@pytest.mark.usefixtures("small_chunks")
def test_many_chunks(case: Case, dtype: torch.dtype) -> None:
    with llama_fast.use_backend(linear_cross_entropy="chunked"):
        check(OP, llama_fast.linear_cross_entropy, runner(case), dtype)


@pytest.mark.parametrize("case", [c for c in CASES if c.V < 1000], ids=lambda c: c.id)
def test_written_out_without_the_kernel(case: Case) -> None:
    """The chunked sweep on cross-entropy written in torch operations, as process groups use it."""
    with llama_fast.use_backend(linear_cross_entropy="chunked", cross_entropy="reference"):
        check(OP, llama_fast.linear_cross_entropy, runner(case), torch.float32)


def test_shift_predicts_the_next_token(backend: str) -> None:
    x, w, target = torch.randn(2, 5, 8), torch.randn(11, 8), torch.randint(0, 11, (2, 5))
    x.requires_grad_()
    ours = llama_fast.linear_cross_entropy(x, w, target, shift=True)
    expected = F.cross_entropy(F.linear(x[:, :-1], w).flatten(0, 1), target[:, 1:].flatten())
    torch.testing.assert_close(ours, expected)
    assert (torch.autograd.grad(ours, x)[0][:, -1] == 0).all()


def test_statistics(backend: str) -> None:
    tensors = make_tensors(Case("", tokens=(4, 6), ignored=True), seed=0)
    x, w, target = (t.float() if t.is_floating_point() else t for t in tensors.values())
    loss, stats = llama_fast.linear_cross_entropy(x, w, target, return_stats=True, z_loss=0.1)
    logits, kept = x @ w.T, target != -100
    assert torch.equal(stats.argmax[kept], logits.argmax(-1)[kept])
    assert torch.equal(stats.correct, (logits.argmax(-1) == target) & kept)
    torch.testing.assert_close(stats.lse[kept], logits.logsumexp(-1)[kept])
    assert (stats.argmax[~kept] == -1).all() and (stats.lse[~kept] == 0).all()
    plain = llama_fast.linear_cross_entropy(x, w, target)
    torch.testing.assert_close(loss, plain + stats.z_loss)


@pytest.mark.parametrize("inner", ("auto", "reference"), ids=["kernel", "written out"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_argmax_is_that_before_the_softcap(dtype: torch.dtype, inner: str, backend: str) -> None:
    """Which makes equals of logits that are not, in one block of classes and in several."""
    x, w = torch.ones(3, 1, dtype=dtype), torch.zeros(1200, 1, dtype=dtype)
    w[[30, 70, 700, 1100]] = torch.tensor([[50.0], [60.0], [80.0], [70.0]], dtype=dtype)
    with llama_fast.use_backend(cross_entropy=inner):
        _, stats = llama_fast.linear_cross_entropy(
            x, w, torch.tensor([30, 700, -100]), softcap=1.0, return_stats=True
        )
    assert stats.argmax.tolist() == [700, 700, -1] and stats.correct.tolist() == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("softcap", (0.01, 0.1, 1.0, 17.0, 300.0))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_softcap(softcap: float, dtype: torch.dtype, kernel: str) -> None:
    """Logits that lie close together, or far apart: what is kept of them tells them apart."""
    case = Case("", V=600, scale=softcap, options={"softcap": softcap})
    check(OP, llama_fast.linear_cross_entropy, runner(case), dtype)


@pytest.mark.not_for("reference")  # it computes all logits
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
def test_ignored_tokens_take_no_part(reduction: str, backend: str) -> None:
    """Not even with NaN in them: they are dropped before any matrix product."""
    x, w = torch.randn(5, 8), torch.randn(11, 8)
    target = torch.tensor([1, -100, 3, -100, 5])
    clean = x.clone().requires_grad_()
    dirty = x.clone()
    dirty[[1, 3]] = torch.nan
    dirty.requires_grad_()
    results = []
    for leaf in (clean, dirty):
        weight = w.clone().requires_grad_()
        loss = llama_fast.linear_cross_entropy(leaf, weight, target, reduction=reduction)
        results.append((loss, *torch.autograd.grad(loss.sum(), (leaf, weight))))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert (results[0][1][[1, 3]] == 0).all()


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("tokens", (0, 4), ids=["no tokens", "all ignored"])
def test_nothing_to_predict(tokens: int, reduction: str, backend: str) -> None:
    """Mean NaN, sum 0 and gradients of zero, as F.linear and F.cross_entropy give them."""
    results = []
    for function in (llama_fast.linear_cross_entropy, torchs_own):
        x, w = torch.ones(tokens, 8, requires_grad=True), torch.ones(11, 8, requires_grad=True)
        loss = function(x, w, torch.full((tokens,), -100), reduction=reduction)
        results.append((loss, *torch.autograd.grad(loss.sum(), (x, w))))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("inner", ("auto", "reference"), ids=["kernel", "written out"])
@pytest.mark.parametrize("bias", (1e4, -1e4, 1e30, -torch.inf, torch.inf, torch.nan), ids=str)
def test_special_values_travel_as_in_torch(bias: float, inner: str, backend: str) -> None:
    """A bias puts them into one class; -inf there takes the class out."""
    b = torch.zeros(11)
    b[4] = bias
    target = torch.tensor([0, 3, 4, 7])
    results = []
    for function in (llama_fast.linear_cross_entropy, torchs_own):
        torch.manual_seed(0)
        x, w = torch.randn(4, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
        with llama_fast.use_backend(cross_entropy=inner):
            losses = function(x, w, target, linear_bias=b, reduction="none")
        results.append((losses, *torch.autograd.grad(losses.sum(), (x, w))))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


def torchs_own(
    x: torch.Tensor,
    w: torch.Tensor,
    target: torch.Tensor,
    *,
    linear_bias: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    return F.cross_entropy(F.linear(x, w, linear_bias), target, **options)


@pytest.mark.parametrize("scale", (2.0**30, 2.0**-20), ids=["underflow", "overflow"])
def test_loss_scale_does_not_lose_half_precision(scale: float, backend: str) -> None:
    """The gradients of the unscaled loss lie outside float16's range, of the scaled one inside."""
    x = torch.randn(6, 8).half().requires_grad_()
    w = torch.randn(11, 8).half().requires_grad_()
    target = torch.randint(0, 11, (6,))
    weight = torch.full((11,), 1 / scale)
    loss = scale * llama_fast.linear_cross_entropy(x, w, target, weight=weight, reduction="sum")
    plain = llama_fast.linear_cross_entropy(x, w, target, reduction="sum")
    pairs = (torch.autograd.grad(y, (x, w)) for y in (loss, plain))
    for scaled, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(scaled, expected)


def test_autocast(backend: str) -> None:
    """Under autocast float32 arguments are rounded as F.linear rounds them; the loss is float32."""
    x, w = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    target = torch.randint(0, 11, (6,))
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        loss = llama_fast.linear_cross_entropy(x, w, target)
    expected = llama_fast.linear_cross_entropy(x.bfloat16(), w.bfloat16(), target)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    for grad in torch.autograd.grad(loss, (x, w)):
        assert grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype: torch.dtype, backend: str) -> None:
    """Slices and transposes give what their contiguous copies give."""
    x = torch.randn(9, 40).to(dtype)[:, 3:24]
    w, w_transposed = torch.randn(50, 30).to(dtype)[::2, :21], torch.randn(21, 25).to(dtype).T
    target = torch.randint(0, 25, (18,))[::2]
    for weight in (w, w_transposed):
        results = []
        for copy in (False, True):
            leaves = [
                (t.contiguous() if copy else t).detach().requires_grad_() for t in (x, weight)
            ]
            loss = llama_fast.linear_cross_entropy(*leaves, target.contiguous() if copy else target)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_confident_predictions_in_bfloat16(backend: str) -> None:
    """Logits far apart, beyond what is kept of them in few bits: gradients as in float64."""
    x = 30 * torch.eye(24, 32).bfloat16()
    w, target = torch.zeros(700, 32).bfloat16(), torch.arange(24)
    w[:24] = 2 * torch.eye(24, 32).bfloat16()
    w[600:, :] = -2.0
    grads = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in (x, w)]
        loss = llama_fast.linear_cross_entropy(*leaves, (target + 1) % 24, reduction="sum")
        grads.append((loss, *torch.autograd.grad(loss, leaves)))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-12)


def test_backward_twice(backend: str) -> None:
    """The same numbers again, and nothing of the first pass in the second."""
    x = torch.randn(20, 16).bfloat16().requires_grad_()
    w = torch.randn(37, 16).bfloat16().requires_grad_()
    loss = llama_fast.linear_cross_entropy(x, w, torch.randint(0, 37, (20,)))
    once = torch.autograd.grad(loss, (x, w), retain_graph=True)
    kept = [g.clone() for g in once]
    tripled = torch.autograd.grad(3 * loss, (x, w), retain_graph=True)
    again = torch.autograd.grad(4 * loss, (x, w))
    for first, copy, three, four in zip(once, kept, tripled, again, strict=True):
        assert torch.equal(first, copy) and torch.equal(4 * first, four)
        torch.testing.assert_close(three, 3 * first)


@pytest.mark.large
@pytest.mark.slow
def test_more_than_two_to_the_31_logits(kernel: str) -> None:
    x, w = torch.randn(70000, 2).bfloat16().requires_grad_(), torch.randn(32000, 2).bfloat16()
    target = torch.randint(0, 32000, (70000,))
    losses = llama_fast.linear_cross_entropy(x, w, target, reduction="none")
    (grad,) = torch.autograd.grad(losses.sum(), x)
    last = slice(-50, None)
    few = x.detach()[last].requires_grad_()
    expected = llama_fast.linear_cross_entropy(few, w, target[last], reduction="none")
    torch.testing.assert_close(losses[last], expected)
    torch.testing.assert_close(grad[last], torch.autograd.grad(expected.sum(), few)[0])


# Prints the growth of the peak memory of one run, without what its gradients take; of the naive one
# they are no part, since it makes them after the peak.
PEAK = """
import re, sys, torch, torch.nn.functional as F, llama_fast
how, dtype, reduction = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]
N, E, V = 2048, 128, 32000
x, w = torch.randn(N, E, dtype=dtype), torch.randn(V, E, dtype=dtype)
target = torch.randint(0, 100, (N,))
def peak():  # in kB; ru_maxrss would count the parent process too
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
def run(rows, classes):
    leaves = [t.clone().requires_grad_() for t in (x[:rows], w[:classes])]
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = peak()
    if how == "naive":
        loss = F.cross_entropy(F.linear(*leaves), target[:rows], reduction=reduction)
    else:
        loss = llama_fast.linear_cross_entropy(*leaves, target[:rows], reduction=reduction)
    loss.sum().backward()
    return peak() - before
if how != "naive":
    llama_fast.use_backend(linear_cross_entropy=how).__enter__()
run(16, 100)  # load everything once
grown = run(N, V)
print(grown if how == "naive" else grown - (x.nbytes + w.nbytes) // 1024)
"""


@cache  # the naive one is compared with every backend
def peak(*arguments: str) -> int:
    run = [sys.executable, "-c", PEAK, *arguments]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


# The reference computes all logits, and what is measured is the CPU's memory.
@pytest.mark.not_for("reference", "triton")
@pytest.mark.large
@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_peak_memory(dtype: str, reduction: str, kernel: str) -> None:
    """The compiled kernel takes a tenth of what F.linear and F.cross_entropy take."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    naive = peak("naive", dtype, reduction)
    size = {"float32": 4, "bfloat16": 2}[dtype]
    assert naive > 2 * 2048 * 32000 * size / 1024  # the measurement sees logits and their gradient
    assert peak(kernel, dtype, reduction) < naive * (0.1 if kernel == "cpu" else 0.5)


def products_of(function: Callable[[], object]) -> int:
    """How many matrix products torch does in `function`."""
    with torch.profiler.profile() as profile:
        function()
    names = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm")
    return sum(event.count for event in profile.key_averages() if event.key in names)


@pytest.mark.parametrize("reduction", ("none", "mean"))
@pytest.mark.parametrize("frozen", ((), ("input",), ("linear_weight",)), ids=str)
def test_frozen_arguments_cost_nothing(frozen: tuple[str, ...], reduction: str) -> None:
    """One product for the logits (again in the backward pass of "none") and one a gradient."""
    x = torch.randn(40, 64, requires_grad="input" not in frozen)
    w = torch.randn(999, 64, requires_grad="linear_weight" not in frozen)
    target = torch.randint(0, 999, (40,))
    with llama_fast.use_backend(linear_cross_entropy="chunked"):
        count = products_of(
            lambda: (
                llama_fast.linear_cross_entropy(x, w, target, reduction=reduction).sum().backward()
            )
        )
    assert count == (2 - len(frozen)) + (2 if reduction == "none" else 1)
    assert (x.grad is None) == ("input" in frozen)
    assert (w.grad is None) == ("linear_weight" in frozen)


def test_no_gradient_no_extra_work() -> None:
    x, w = torch.randn(40, 64, requires_grad=True), torch.randn(999, 64, requires_grad=True)
    target = torch.randint(0, 999, (40,))
    with torch.no_grad(), llama_fast.use_backend(linear_cross_entropy="chunked"):
        assert products_of(lambda: llama_fast.linear_cross_entropy(x, w, target)) == 1


@pytest.mark.parametrize("frozen", ("input", "linear_weight"))
def test_a_frozen_argument_changes_nothing_else(frozen: str, kernel: str) -> None:
    """The other gradient, and the loss, have the same bits."""
    tensors = {"input": torch.randn(40, 64), "linear_weight": torch.randn(999, 64)}
    target, results = torch.randint(0, 999, (40,)), []
    for names in (list(tensors), [name for name in tensors if name != frozen]):
        leaves = {k: t.clone().requires_grad_(k in names) for k, t in tensors.items()}
        loss = llama_fast.linear_cross_entropy(**leaves, target=target)
        loss.backward()
        results.append((loss, {k: t.grad for k, t in leaves.items()}))
    (loss, all_grads), (same_loss, some) = results
    assert torch.equal(loss, same_loss) and some[frozen] is None
    (kept,) = (name for name in tensors if name != frozen)
    assert torch.equal(all_grads[kept], some[kept])
