"""What every op promises to autograd and torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import llama_fast
from llama_fast.ops.backends.choice import choose
from tests.ops.calls import CALLS, Call, total
from tests.ops.conftest import DEVICES, in_force


def cases(
    wanted: Callable[[Call, str], bool] = lambda call, backend: True,
) -> list[object]:
    """Every call on every backend of its op."""
    available = llama_fast.backends().available
    return [
        pytest.param(
            (call, backend),
            id=f"{name} {backend}".replace(" ", "-"),
            marks=[pytest.mark.gpu] if DEVICES[backend] != "cpu" else [],
        )
        for name, call in CALLS.items()
        for backend in DEVICES
        if backend in available[call.op]
        and backend != "cuda"  # which has no float64
        and wanted(call, backend)
    ]


@pytest.fixture(params=cases())
def call(request: pytest.FixtureRequest) -> Iterator[Call]:
    this, backend = request.param
    with in_force(this.op, backend):
        yield this


def gradients(call: Call, leaves: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(total(call.function(*leaves)), leaves)


def test_gradcheck(call: Call) -> None:
    """Analytic derivatives of the real kernel equal numerical ones, in float64."""
    # One random direction where the interpreter would take minutes for every element.
    interpreted = choose(call.op, torch.empty(0)) == "triton"
    assert torch.autograd.gradcheck(call.function, call.leaves(), fast_mode=interpreted)


def test_second_derivatives(call: Call) -> None:
    """Gradients of gradients, as torch's own functions have them."""
    leaves = call.leaves()
    if refuses_second_derivatives(call, choose(call.op, torch.empty(0))):
        with pytest.raises(RuntimeError, match="expected a backward pass without create_graph"):
            torch.autograd.grad(total(call.function(*leaves)), leaves, create_graph=True)
        return
    upstream = tuple(torch.randn_like(out) for out in call.function(*leaves))
    # Fast mode takes one random direction instead of every element: seconds instead of minutes.
    assert torch.autograd.gradgradcheck(call.function, leaves, upstream, fast_mode=True)


def refuses_second_derivatives(call: Call, backend: str) -> bool:
    """In place the logits are gone after the first; the reference ignores the permission."""
    return call is CALLS["cross_entropy in place"] and backend in ("cpu", "triton")


# Where there is an eager second derivative to compare with.
@pytest.mark.parametrize(
    "call",
    cases(lambda call, backend: not refuses_second_derivatives(call, backend)),
    indirect=True,
)
def test_func_second_derivatives(call: Call) -> None:
    def norm_of_gradient(*x: torch.Tensor) -> torch.Tensor:
        grads = torch.func.grad(lambda *y: total(call.function(*y)), tuple(range(len(x))))(*x)
        return sum(g.square().sum() for g in grads)

    leaves = call.leaves()
    grads = torch.autograd.grad(total(call.function(*leaves)), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)
    found = torch.func.grad(norm_of_gradient, tuple(range(len(leaves))))(*leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_second_backward_gives_the_same_numbers(call: Call) -> None:
    leaves = call.leaves(torch.float32)
    loss = total(call.function(*leaves))
    first = torch.autograd.grad(loss, leaves, torch.tensor(0.7), retain_graph=True)
    second = torch.autograd.grad(loss, leaves, torch.tensor(0.7))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_run_to_run(call: Call) -> None:
    first, second = (gradients(call, call.leaves(torch.float32)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_inputs_are_unchanged(call: Call) -> None:
    leaves = call.leaves()
    before = [leaf.detach().clone() for leaf in leaves]
    versions = [leaf._version for leaf in leaves]
    gradients(call, leaves)
    for leaf, old, version in zip(leaves, before, versions, strict=True):
        assert torch.equal(leaf.detach(), old) and leaf._version == version


def test_frozen_inputs_get_no_gradient(call: Call) -> None:
    """Whichever inputs are frozen, the others' gradients are what they are with all."""
    everything = gradients(call, call.leaves())
    for trainable in range(len(everything)):
        leaves = [leaf if i == trainable else leaf.detach() for i, leaf in enumerate(call.leaves())]
        total(call.function(*leaves)).backward()
        torch.testing.assert_close(leaves[trainable].grad, everything[trainable])
        assert all(leaf.grad is None for i, leaf in enumerate(leaves) if i != trainable)


def test_no_grad_builds_no_graph(call: Call) -> None:
    expected = call.function(*call.leaves())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = call.function(*call.leaves())
        for out, same in zip(outputs, expected, strict=True):
            assert not out.requires_grad
            torch.testing.assert_close(out.clone(), same.detach())


def test_nothing_requires_grad(call: Call) -> None:
    outputs = call.function(*(leaf.detach() for leaf in call.leaves()))
    assert not any(out.requires_grad for out in outputs)


@pytest.mark.parametrize("reentrant", (False, True), ids=["", "reentrant"])
def test_activation_checkpointing(call: Call, reentrant: bool) -> None:
    """Running the forward pass again in the backward pass changes nothing."""
    plain = gradients(call, call.leaves(torch.float32))
    leaves = call.leaves(torch.float32)
    total(checkpoint(call.function, *leaves, use_reentrant=reentrant)).backward()
    for leaf, expected in zip(leaves, plain, strict=True):
        assert torch.equal(leaf.grad, expected)


def test_gradients_accumulate(call: Call) -> None:
    leaves = call.leaves()
    for _ in range(2):
        total(call.function(*leaves)).backward()
    for leaf, once in zip(leaves, gradients(call, call.leaves()), strict=True):
        torch.testing.assert_close(leaf.grad, 2 * once)


def test_unused_outputs(call: Call) -> None:
    """A gradient may come into some of the outputs only."""
    count = len(call.function(*call.leaves()))
    for used in range(count):
        leaves = call.leaves()
        out = call.function(*leaves)[used]
        (upstream,) = torch.autograd.grad(total((out,)), out, retain_graph=True)
        found = torch.autograd.grad(total((out,)), leaves, allow_unused=True)
        outputs = call.function(*leaves)
        zeros = [torch.zeros_like(o) for o in outputs]
        zeros[used] = upstream
        full = torch.autograd.grad(outputs, leaves, zeros)
        for a, b in zip(found, full, strict=True):
            torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b)


def test_func_grad(call: Call) -> None:
    leaves = call.leaves()
    numbers = tuple(range(len(leaves)))
    found = torch.func.grad(lambda *x: total(call.function(*x)), argnums=numbers)(
        *(leaf.detach() for leaf in leaves)
    )
    for ours, expected in zip(found, gradients(call, leaves), strict=True):
        torch.testing.assert_close(ours, expected)


def test_func_vmap(call: Call) -> None:
    """Mapped over a new first dimension of every input: as one call after the other."""
    batches = [torch.stack([leaf.detach(), leaf.detach() * 0.5]) for leaf in call.leaves()]
    mapped = torch.func.vmap(call.function)(*batches)
    for i in range(2):
        for ours, expected in zip(mapped, call.function(*(b[i] for b in batches)), strict=True):
            torch.testing.assert_close(ours[i], expected)


def test_func_vmap_of_grad(call: Call) -> None:
    """Gradients per sample."""
    batches = [torch.stack([leaf.detach(), leaf.detach() * 0.5]) for leaf in call.leaves()]
    numbers = tuple(range(len(batches)))
    per_sample = torch.func.grad(lambda *x: total(call.function(*x)), argnums=numbers)
    mapped = torch.func.vmap(per_sample)(*batches)
    for i in range(2):
        leaves = tuple(b[i].clone().requires_grad_() for b in batches)
        for ours, expected in zip(mapped, gradients(call, leaves), strict=True):
            torch.testing.assert_close(ours[i], expected)


# Offsets of packed sequences are data.
@pytest.mark.parametrize(
    "call", cases(lambda call, backend: "packed" not in str(call.function)), indirect=True
)
def test_meta_tensors_give_shapes(call: Call) -> None:
    """No data, no kernel: shapes and dtypes only."""
    expected = call.function(*call.leaves(torch.float32))
    with torch.device("meta"):
        leaves = tuple(torch.empty(shape) for shape in call.shapes)
        outputs = call.function(*leaves)
    for ours, real in zip(outputs, expected, strict=True):
        assert (ours.shape, ours.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("of", ("loss", "lse"))
def test_inputs_made_of_one_another(of: str, reduction: str) -> None:
    """A tied weight has its own share of the gradient, and that of the other input once."""
    torch.manual_seed(0)
    w = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([3, 0, 8, 1, -100, 2])

    def ours(w: torch.Tensor) -> torch.Tensor:
        loss, stats = llama_fast.linear_cross_entropy(
            w[:6].sin(), w, target, reduction=reduction, return_stats=True
        )
        return (loss if of == "loss" else stats.lse).sum()

    def stock(w: torch.Tensor) -> torch.Tensor:
        logits = w[:6].sin() @ w.T
        if of == "lse":
            return logits[target != -100].logsumexp(1).sum()
        return F.cross_entropy(logits, target, reduction=reduction).sum()

    want = torch.autograd.grad(stock(w), w)[0]
    kept = torch.autograd.grad(ours(w), w, create_graph=True)[0]
    torch.testing.assert_close(kept, want)
    # A leaf that requires grad makes torch.func.grad's gradient differentiable, too.
    torch.testing.assert_close(torch.func.grad(ours)(w), want)
    torch.testing.assert_close(torch.func.hessian(ours)(w), torch.func.hessian(stock)(w))


def test_an_input_that_only_an_outer_level_differentiates() -> None:
    x, w = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 9))
    target = torch.arange(5)

    def ours(w: torch.Tensor) -> torch.Tensor:
        return llama_fast.linear_cross_entropy(x, w, target)

    def stock(w: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x @ w.T, target)

    got, want = (torch.func.grad(f)(w).sin().sum() for f in (ours, stock))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (x, w)), torch.autograd.grad(want, (x, w)))
