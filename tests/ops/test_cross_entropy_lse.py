"""The gradient of cross-entropy's log-sum-exp."""

from dataclasses import replace

import pytest
import torch

import llama_fast
from llama_fast.reference.cross_entropy import CrossEntropyOptions
from tests.ops.criterion import DTYPES, check
from tests.ops.cross_entropy_cases import Case, runner
from tests.ops.test_cross_entropy_inputs import SPECIAL

OP = "cross_entropy"

CASES = [
    Case("plain"),
    Case("one class", shape=(3, 1)),
    Case("no batch dimension", shape=(11,)),
    Case("some targets ignored: lse is there, and so is its gradient", targets="some ignored"),
    Case("all targets ignored: no loss, and an lse", targets="some ignored",
         options={"ignore_index": 0}, shape=(3, 1, 4)),
    Case("an ignore_index that is a class", targets="some ignored", class_weights=True,
         options={"ignore_index": 5, "label_smoothing": 0.1}),
    Case("softcap that bites", options={"softcap": 2.0}, targets="some ignored"),
    Case("every option, trailing dimensions", shape=(3, 21, 7), class_weights=True,
         targets="some ignored",
         options={"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0}),
    Case("probability targets", targets="probabilities", class_weights=True,
         options={"label_smoothing": 0.2, "z_loss": 1e-2}),
    Case("long rows", shape=(3, 50257), targets="some ignored"),
    Case("long rows of probabilities", shape=(2, 100003), targets="probabilities"),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("case", "reduction"),
    [
        pytest.param(case, reduction, id=f"{case.id}-{reduction}")
        for case in CASES
        for reduction in ("none", "mean", "sum")
        # The loss is NaN, and with it the sum of both gradients.
        if not (case.why.startswith("all targets ignored") and reduction == "mean")
    ],
)
def test_gradient(case: Case, reduction: str, dtype: torch.dtype, kernel: str) -> None:
    options = {**case.options, "reduction": reduction, "return_stats": True}
    check(
        OP, llama_fast.cross_entropy, runner(replace(case, options=options, grad_lse=True)), dtype
    )


def test_alone(backend: str) -> None:
    """Where only lse is used targets play no part, even if they are all ignored, or NaN."""
    logits = torch.randn(6, 40, dtype=torch.float64)
    upstream = torch.randn(6, dtype=torch.float64)
    softmax = logits.softmax(1) * upstream.unsqueeze(1)
    targets = (
        torch.arange(6),
        torch.full((6,), -100),
        torch.full((6, 40), torch.nan, dtype=torch.float64),
    )
    wide = torch.float32 if backend == "cuda" else torch.float64
    for target in targets:
        x = logits.to(wide).requires_grad_()
        _, stats = llama_fast.cross_entropy(x, target, return_stats=True, reduction="mean")
        (grad,) = torch.autograd.grad(stats.lse, x, upstream.to(wide))
        torch.testing.assert_close(grad, softmax.to(wide))


def test_z_loss_by_hand(backend: str) -> None:
    """What people do with cut-cross-entropy's lse trains as `z_loss` does."""
    logits, target = torch.randn(9, 30), torch.randint(0, 30, (9,))
    grads = []
    for by_hand in (False, True):
        x = logits.clone().requires_grad_()
        loss, stats = llama_fast.cross_entropy(
            x, target, z_loss=0.0 if by_hand else 0.1, return_stats=True
        )
        if by_hand:
            loss = loss + 0.1 * stats.lse.square().mean()
        grads.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("change", SPECIAL.values(), ids=SPECIAL.keys())
def test_special_values_travel_as_in_torch(change: object, kernel: str) -> None:
    logits = torch.randn(4, 70)
    change(logits)
    expected = (logits.logsumexp(1), logits.softmax(1))
    logits.requires_grad_()
    _, stats = llama_fast.cross_entropy(logits, torch.ones(4).long(), return_stats=True)
    (grad,) = torch.autograd.grad(stats.lse.sum(), logits)
    lse = stats.lse.detach()
    if kernel in ("triton", "cuda"):  # where inf - inf is NaN, and no second look is worth it
        lse = lse.where(expected[0] != torch.inf, torch.inf)
    for got, torchs in zip((lse, grad), expected, strict=True):
        torch.testing.assert_close(got, torchs, equal_nan=True)


@pytest.mark.not_for("reference")  # it reads every row
def test_rows_without_a_gradient_are_not_read(kernel: str) -> None:
    """The NaN of a row whose lse is left out goes nowhere."""
    x = torch.randn(4, 9)
    x[2] = torch.nan
    x.requires_grad_()
    target = torch.tensor([3, 1, -100, 5])
    loss, stats = llama_fast.cross_entropy(x, target, return_stats=True)
    kept = stats.lse[target != -100]
    (grad,) = torch.autograd.grad(loss + kept.square().mean(), x)
    assert grad.isfinite().all() and (grad[2] == 0).all()


@pytest.mark.not_for("reference")  # it makes no use of the permission
def test_in_place_refuses(kernel: str) -> None:
    """The logits are gone: an error, not a gradient without lse's part."""
    x = torch.randn(4, 9, requires_grad=True)
    loss, stats = llama_fast.cross_entropy(x * 1, torch.arange(4), inplace=True, return_stats=True)
    with pytest.raises(RuntimeError, match=r"inplace=True\).*stats\.lse.*use inplace=False"):
        (loss + stats.lse.mean()).backward()
    loss, stats = llama_fast.cross_entropy(x * 1, torch.arange(4), inplace=True, return_stats=True)
    (loss + stats.lse.detach().mean()).backward()
    assert x.grad is not None


@pytest.mark.not_for("reference")  # it has no operator
def test_not_asked_for_there_is_none(backend: str) -> None:
    """The raw operator without statistics has no lse of ignored tokens to differentiate."""
    x = torch.randn(3, 5, requires_grad=True)
    target = torch.tensor([1, -100, 2])
    for stats in (False, True):
        outputs = torch.ops.llama_fast.cross_entropy(x, target, *CrossEntropyOptions(), stats)
        assert [o.requires_grad for o in outputs] == [True, stats, False, False]
