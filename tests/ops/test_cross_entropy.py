"""Cross-entropy: loss, log-sum-exp and gradients, over shapes and every option."""

from dataclasses import replace

import pytest
import torch

import llama_fast
from tests.ops.criterion import DTYPES, check
from tests.ops.cross_entropy_cases import Case, runner

OP = "cross_entropy"

SHAPES = [
    Case("one class: the loss is zero", shape=(3, 1)),
    Case("two classes, one token", shape=(1, 2)),
    Case("fewer classes than a vector register holds", shape=(7, 3)),
    Case("one class less than two AVX-512 registers", shape=(5, 31)),
    Case("exactly two AVX-512 registers of classes", shape=(5, 32)),
    Case("one class more than two AVX-512 registers", shape=(5, 33)),
    Case("ImageNet", shape=(4, 1000)),
    Case("a prime number of classes", shape=(33, 4099)),
    Case("Llama 2", shape=(3, 32000)),
    Case("SmolLM2", shape=(2, 49152)),
    Case("Llama 3: more classes than 16 bits count", shape=(2, 128256)),
    Case("many more rows than threads, short ones", shape=(301, 17)),
    Case("no batch dimension: torch's (V,) form", shape=(11,)),
    Case("a class dimension before one other", shape=(6, 11, 4)),
    Case("a class dimension before two others, as in segmentation", shape=(3, 21, 5, 7)),
    Case("a class dimension before one of size 1", shape=(2, 5, 1)),
    Case("a class dimension before many positions", shape=(2, 300, 130)),
]

OPTIONS = [
    Case("plain"),
    Case("some targets ignored", targets="some ignored"),
    Case("an ignore_index that is a class", targets="some ignored", options={"ignore_index": 5}),
    Case("class weights", class_weights=True),
    Case("class weights, some ignored", class_weights=True, targets="some ignored"),
    Case("label smoothing", options={"label_smoothing": 0.1}),
    Case("label smoothing of 1: only the smoothing is left", options={"label_smoothing": 1.0}),
    Case("label smoothing, class weights, some ignored", class_weights=True,
         targets="some ignored", options={"label_smoothing": 0.3}),
    Case("z-loss", options={"z_loss": 1e-2}),
    Case("z-loss, class weights, some ignored: two different means", class_weights=True,
         targets="some ignored", options={"z_loss": 1e-2}),
    Case("softcap that bites", options={"softcap": 2.0}),
    Case("softcap of Gemma 2", options={"softcap": 30.0}, spread=20),
    Case("softcap that leaves little of the gradient", options={"softcap": 20.0}, spread=60),
    Case("large softcapped logits", options={"softcap": 1000.0}, spread=300),
    Case("smoothing of many flat logits", shape=(19, 1100), spread=1e-6,
         options={"label_smoothing": 1.0, "z_loss": 1e-2}),
    Case("every option", class_weights=True, targets="some ignored",
         options={"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0}),
    Case("every option, trailing dimensions", shape=(3, 21, 7), class_weights=True,
         targets="some ignored",
         options={"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 5.0}),
    Case("probability targets", targets="probabilities"),
    Case("probability targets, smoothing, class weights", targets="probabilities",
         class_weights=True, options={"label_smoothing": 0.2}),
    Case("probability targets, z-loss, softcap", targets="probabilities",
         options={"z_loss": 1e-2, "softcap": 4.0}),
    Case("probability targets, trailing dimensions", shape=(3, 21, 7), targets="probabilities",
         class_weights=True, options={"z_loss": 1e-2}),
    Case("stats", targets="some ignored", options={"return_stats": True, "z_loss": 1e-2}),
    Case("peaked logits: the loss of most tokens is tiny or large", spread=30),
    Case("flat logits: the classes are all but equal", spread=1e-3),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SHAPES, ids=lambda c: c.id)
def test_shapes(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check(OP, llama_fast.cross_entropy, runner(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("case", OPTIONS, ids=lambda c: c.id)
def test_options(case: Case, reduction: str, dtype: torch.dtype, kernel: str) -> None:
    case = replace(case, options={**case.options, "reduction": reduction})
    check(OP, llama_fast.cross_entropy, runner(case), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_the_results(dtype: torch.dtype, backend: str) -> None:
    """A 16-bit loss would be worth two or three digits: it is float32, the gradient is not."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits = torch.randn(5, 7, dtype=dtype, requires_grad=True)
    target = torch.randint(0, 7, (5,))
    loss, stats = llama_fast.cross_entropy(logits, target, z_loss=0.1, return_stats=True)
    assert loss.dtype == stats.lse.dtype == stats.z_loss.dtype == wide
    assert stats.argmax.dtype == torch.int64 and stats.correct.dtype == torch.bool
    assert torch.autograd.grad(loss, logits)[0].dtype == dtype


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("shape", ((9, 13), (4, 13, 6), (13,)), ids=str)
def test_stats(shape: tuple[int, ...], reduction: str, backend: str) -> None:
    logits = torch.randn(shape, requires_grad=True)
    class_dim = 0 if len(shape) == 1 else 1
    tokens = shape[:class_dim] + shape[class_dim + 1 :]
    target = torch.randint(0, 13, tokens)
    if target.dim():
        target.view(-1)[1] = -100
    kept = target != -100
    loss, stats = llama_fast.cross_entropy(
        logits, target, z_loss=0.01, reduction=reduction, return_stats=True
    )
    plain = llama_fast.cross_entropy(logits, target, reduction=reduction)
    assert torch.equal(stats.argmax[kept], logits.argmax(class_dim)[kept])
    assert torch.equal(stats.correct, (logits.argmax(class_dim) == target) & kept)
    torch.testing.assert_close(stats.lse[kept], logits.detach().logsumexp(class_dim)[kept])
    torch.testing.assert_close(loss, plain + stats.z_loss)
    z_loss = (0.01 * logits.detach().logsumexp(class_dim) ** 2).masked_fill(~kept, 0)
    expected = {"none": z_loss, "sum": z_loss.sum(), "mean": z_loss.sum() / kept.sum()}
    torch.testing.assert_close(stats.z_loss, expected[reduction])
    assert [s.requires_grad for s in stats] == [True, False, False, False]


def test_stats_of_probability_targets(backend: str) -> None:
    logits, target = torch.randn(9, 13), torch.rand(9, 13)
    _, stats = llama_fast.cross_entropy(logits, target, return_stats=True)
    assert torch.equal(stats.argmax, logits.argmax(1))
    assert torch.equal(stats.correct, logits.argmax(1) == target.argmax(1))


def test_argmax_of_equal_logits_is_the_first(backend: str) -> None:
    logits = torch.zeros(3, 100)
    logits[1, 40] = logits[1, 70] = logits[2, 99] = 1.0
    _, stats = llama_fast.cross_entropy(logits, torch.tensor([0, 70, 99]), return_stats=True)
    assert stats.argmax.tolist() == [0, 40, 99]
    assert stats.correct.tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_rows_of_the_lowest_number(dtype: torch.dtype, backend: str) -> None:
    """As masks that add it leave them: all classes are as likely, though log(V) is lost in lse."""
    x = torch.full((3, 50), torch.finfo(dtype).min, dtype=dtype)
    x[1] = -1e30
    x.requires_grad_()
    loss = llama_fast.cross_entropy(x, torch.tensor([1, 2, 49]), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    expected = torch.full((3, 50), 1 / 50, dtype=dtype)
    expected[torch.arange(3), torch.tensor([1, 2, 49])] -= 1
    torch.testing.assert_close(loss, torch.full_like(loss, 50).log())
    torch.testing.assert_close(grad, expected)
