"""Cross-entropy: in-place mode, strides, empty tensors, ignored targets, infinities and NaN."""

import pytest
import torch
import torch.nn.functional as F

import llama_fast
from tests.ops.criterion import DTYPES, check, served_by
from tests.ops.cross_entropy_cases import Case, make_tensors, runner

OP = "cross_entropy"


def inplace(input: torch.Tensor, *args: object, **options: object) -> object:
    """The op in place, on an intermediate result: a leaf may not be overwritten."""
    return llama_fast.cross_entropy(input * 1, *args, inplace=True, **options)


INPLACE = [
    Case("in place, mean"),
    Case("in place, sum, some ignored", targets="some ignored", options={"reduction": "sum"}),
    Case("in place, none: the upstream gradient differs from token to token",
         options={"reduction": "none"}),
    Case("in place, every option", class_weights=True, targets="some ignored",
         options={"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0, "return_stats": True}),
    Case("in place, trailing dimensions", shape=(3, 21, 7), targets="some ignored"),
    Case("in place, probability targets", targets="probabilities", class_weights=True),
    Case("in place, many classes", shape=(3, 32000)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", INPLACE, ids=lambda c: c.id)
def test_inplace(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, inplace, runner(case), dtype, formula=served_by("reference", OP))


def test_inplace_second_backward_gives_the_same_numbers(backend: str) -> None:
    x = torch.randn(8, 30, requires_grad=True)
    loss = inplace(x, torch.randint(0, 30, (8,)))
    first = torch.autograd.grad(loss, x, torch.tensor(3.0), retain_graph=True)[0]
    second = torch.autograd.grad(loss, x, torch.tensor(3.0), retain_graph=True)[0]
    unit = torch.autograd.grad(loss, x)[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, 3 * unit)


def test_inplace_on_a_leaf_is_an_error(backend: str) -> None:
    x = torch.randn(4, 5, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises((RuntimeError, ValueError), match="leaf"):
        llama_fast.cross_entropy(x, torch.randint(0, 5, (4,)), inplace=True)
    assert torch.equal(x.detach(), before)


@pytest.mark.not_for("reference")  # it makes no use of the permission
def test_inplace_bumps_the_version(kernel: str) -> None:
    """Autograd notices that a tensor which something else saved was overwritten."""
    x = torch.randn(4, 5, requires_grad=True)
    logits = x * 1
    square = (logits**2).sum()
    version = logits._version
    llama_fast.cross_entropy(logits, torch.randint(0, 5, (4,)), inplace=True)
    assert logits._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


@pytest.mark.parametrize("shape", ((6, 11), (3, 11, 4)), ids=str)
def test_strides(shape: tuple[int, ...], backend: str) -> None:
    """The result depends on the numbers, not on how they lie in memory: bit for bit."""
    logits = torch.randn(shape)
    target = torch.randint(0, 11, shape[:1] + shape[2:])
    layouts = {
        "classes first": logits.movedim(1, 0).contiguous().movedim(0, 1),
        "classes last": logits.movedim(1, -1).contiguous().movedim(-1, 1),
        "every second class": logits.repeat_interleave(2, dim=1)[:, ::2],
        "every second row": logits.repeat_interleave(2, dim=0)[::2],
        "rows of a padded matrix": torch.cat([logits, logits], dim=1)[:, :11],
        "an odd offset": torch.cat([torch.zeros(3), logits.flatten()])[3:].view(shape),
        "one row expanded": logits[:1].expand(shape),
        "one class expanded": logits[:, :1].expand(shape),
    }
    for name, layout in layouts.items():
        results = []
        for tensor in (layout, layout.clone(memory_format=torch.contiguous_format)):
            leaf = tensor.detach().requires_grad_()
            losses = llama_fast.cross_entropy(leaf, target, reduction="none", label_smoothing=0.1)
            results.append((losses, torch.autograd.grad(losses.sum(), leaf)[0]))
        for strided, contiguous in zip(*results, strict=True):
            torch.testing.assert_close(strided, contiguous, msg=lambda m, n=name: f"{n}: {m}")


def test_strides_of_targets_and_weights(backend: str) -> None:
    logits = torch.randn(6, 11, 4)
    target = torch.randint(0, 11, (4, 6)).T
    weight = torch.rand(22)[::2]
    ours = llama_fast.cross_entropy(logits, target, weight)
    assert torch.equal(ours, llama_fast.cross_entropy(logits, target.contiguous(), weight.clone()))
    probabilities = torch.rand(4, 6, 11).permute(1, 2, 0)
    ours = llama_fast.cross_entropy(logits, probabilities)
    assert torch.equal(ours, llama_fast.cross_entropy(logits, probabilities.contiguous()))


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("shape", ((0, 5), (0, 5, 3), (3, 5, 0)), ids=str)
def test_no_tokens(shape: tuple[int, ...], reduction: str, backend: str) -> None:
    """No tokens: NaN for the mean, zero for the sum, as in torch."""
    results = []
    for function in (llama_fast.cross_entropy, F.cross_entropy):
        x = torch.zeros(shape, requires_grad=True)
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
        loss = function(x, target, reduction=reduction)
        results.append((loss, torch.autograd.grad(loss.sum(), x)[0]))
    for ours, torchs in zip(*results, strict=True):
        assert ours.shape == torchs.shape
        torch.testing.assert_close(ours, torchs, equal_nan=True)


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("class_weights", (False, True), ids=["", "weighted"])
def test_all_targets_ignored(class_weights: bool, reduction: str, backend: str) -> None:
    """Mean NaN, sum 0, and the gradients that torch gives."""
    weight = torch.rand(5) if class_weights else None
    results = []
    for function in (llama_fast.cross_entropy, F.cross_entropy):
        torch.manual_seed(0)
        x = torch.randn(3, 5, requires_grad=True)
        loss = function(x, torch.full((3,), -100), weight, reduction=reduction)
        results.append((loss, torch.autograd.grad(loss.sum(), x)[0]))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_ignored_tokens_get_no_gradient(backend: str) -> None:
    x = torch.randn(4, 9, requires_grad=True)
    target = torch.tensor([3, -100, 0, -100])
    loss = llama_fast.cross_entropy(x, target, z_loss=0.1, label_smoothing=0.1)
    grad = torch.autograd.grad(loss, x)[0]
    assert (grad[[1, 3]] == 0).all() and (grad[[0, 2]] != 0).any(dim=1).all()


SPECIAL = {
    "logits of 1e4": lambda x: x.mul_(1e4),
    "one logit of 1e4": lambda x: x[2, 3].fill_(1e4),
    "one logit of -1e4": lambda x: x[2, 3].fill_(-1e4),
    "one logit of 1e30": lambda x: x[2, 3].fill_(1e30),
    "one -inf": lambda x: x[2, 3].fill_(-torch.inf),
    "-inf at the target": lambda x: x[2, 1].fill_(-torch.inf),
    "all but one class -inf": lambda x: x[2, 1:].fill_(-torch.inf),
    "a row of -inf": lambda x: x[2].fill_(-torch.inf),
    "one +inf": lambda x: x[2, 3].fill_(torch.inf),
    "+inf at the target": lambda x: x[2, 1].fill_(torch.inf),
    "two +inf": lambda x: x[2, 3:5].fill_(torch.inf),
    "one NaN": lambda x: x[2, 3].fill_(torch.nan),
    "a NaN in the last class": lambda x: x[2, -1].fill_(torch.nan),
    "+inf and -inf": lambda x: (x[2, 3].fill_(torch.inf), x[2, 4].fill_(-torch.inf)),
}


@pytest.mark.parametrize("smoothing", (0.0, 0.1), ids=["", "smoothed"])
@pytest.mark.parametrize("classes", (7, 70), ids=["7 classes", "70 classes"])
@pytest.mark.parametrize("change", SPECIAL.values(), ids=SPECIAL.keys())
def test_special_values_travel_as_in_torch(
    change: object, classes: int, smoothing: float, backend: str
) -> None:
    """Loss and gradient are torch's, inf and NaN included."""
    logits = torch.randn(4, classes)
    change(logits)
    target = torch.ones(4, dtype=torch.int64)
    results = []
    for function in (llama_fast.cross_entropy, F.cross_entropy):
        x = logits.clone().requires_grad_()
        losses = function(x, target, reduction="none", label_smoothing=smoothing)
        results.append((losses, torch.autograd.grad(losses.sum(), x)[0]))
    for name, ours, torchs in zip(("loss", "gradient"), *results, strict=True):
        torch.testing.assert_close(ours, torchs, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


def test_offsets_past_two_to_the_31(backend: str) -> None:
    """Rows more than 2^31 elements apart: 32-bit offsets would wrap. Untouched memory is free."""
    N, V = 3, 104  # whole accesses of 16 bytes: the same sums in either place
    logits = torch.empty(2**31 + V, dtype=torch.bfloat16).as_strided((N, V), (2**30, 1))
    near = torch.randn(N, V).bfloat16()
    logits.copy_(near)
    target = torch.randint(0, V, (N,))
    ours = llama_fast.cross_entropy(logits, target, reduction="none")
    assert torch.equal(ours, llama_fast.cross_entropy(near, target, reduction="none"))


def test_autocast(backend: str) -> None:
    """Under autocast 16-bit logits give a float32 loss, as in torch, and a 16-bit gradient."""
    tensors = make_tensors(Case(""), seed=0)
    logits = tensors["input"].bfloat16().requires_grad_()
    with torch.autocast(logits.device.type, dtype=torch.bfloat16):
        loss = llama_fast.cross_entropy(logits, tensors["target"])
        assert loss.dtype == F.cross_entropy(logits, tensors["target"]).dtype == torch.float32
    assert torch.autograd.grad(loss, logits)[0].dtype == torch.bfloat16
