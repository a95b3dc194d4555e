"""The scorer against the model itself, in float64, one request at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import llama_fast
from llama_fast.eval.engine import Likelihood, Scorer
from llama_fast.models import LLaMA, LlamaConfig
from tests.eval.harness_tasks import instances
from tests.paths import smollm2

Pairs = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def real() -> tuple[LLaMA, Pairs]:
    """SmolLM2 and the options of real questions: HellaSwag, and MMLU with five examples."""
    model, tokenizer = llama_fast.models.load(smollm2(), dtype=torch.float32)
    pairs = []
    for task, limit in (("hellaswag", 3), ("mmlu_5shot_anatomy", 2)):
        for request in instances(task, limit):
            context, continuation = request.args
            whole, start = tokenizer.encode(context + continuation), tokenizer.encode(context)
            pairs.append((start, whole[len(start) :]))
    return model, pairs


def one_by_one(model: LLaMA, pairs: Pairs, dtype: torch.dtype) -> list[tuple[float, bool]]:
    """By the reference mathematics and plain log-softmax."""
    found = []
    for context, continuation in pairs:
        tokens = torch.tensor([[*context, *continuation[:-1]]])
        with (
            torch.no_grad(),
            llama_fast.use_backend("reference" if dtype == torch.float64 else "torch"),
        ):
            logits = model(tokens)[0, len(context) - 1 :]
        logprobs = logits.to(torch.float64).log_softmax(-1)
        targets = torch.tensor(continuation)
        total = logprobs.gather(1, targets.unsqueeze(1)).sum().item()
        found.append((total, bool((logprobs.argmax(-1) == targets).all())))
    return found


def test_error_is_no_larger_than_that_of_stock_operators(real: tuple[LLaMA, Pairs]) -> None:
    model, pairs = real
    context, continuation = pairs[-1]  # five examples, which are long for float64
    pairs = [*pairs[:12:2], (context[-256:], continuation)]
    ours = Scorer(model).score(pairs)
    stock = one_by_one(model, pairs, torch.float32)
    truth = one_by_one(model.double(), pairs, torch.float64)
    model.float()
    errors = [
        [abs(a[0] - b[0]) for a, b in zip(side, truth, strict=True)] for side in (ours, stock)
    ]
    # Rounding of a sum of many: the largest of a few draws varies by a factor of two.
    assert max(errors[0]) <= 2 * max(errors[1])
    assert [a.greedy for a in ours] == [b[1] for b in truth]


def test_batch_order_and_reuse_do_not_matter(real: tuple[LLaMA, Pairs]) -> None:
    """Packed by other budgets, in other orders, and each request without the others."""
    model, pairs = real
    pairs = pairs[:8]
    expected = Scorer(model).score(pairs)
    sides = [[Scorer(model).score([pair])[0] for pair in pairs]]
    for budget in (1, 100, 512):
        order = random.Random(budget).sample(range(len(pairs)), len(pairs))
        answers = Scorer(model, budget).score([pairs[i] for i in order])
        sides.append([answers[order.index(i)] for i in range(len(pairs))])
    for found in sides:
        assert [a.logprob for a in found] == pytest.approx([b.logprob for b in expected], rel=1e-5)
        assert [a.greedy for a in found] == [b.greedy for b in expected]


def test_shared_beginnings_are_computed_once(real: tuple[LLaMA, Pairs]) -> None:
    model, pairs = real
    scorer = Scorer(model)
    scorer.score(pairs)
    beginnings = {
        tuple([*c, *k[:-1]][: i + 1]) for c, k in pairs for i in range(len(c) + len(k) - 1)
    }
    assert scorer.work.computed == len(beginnings) < scorer.work.requested / 2
    rows = {(*c, *k[:i]) for c, k in pairs for i in range(len(k))}
    assert scorer.work.rows == len(rows)  # options of one token are read from one row


def test_pages_come_back(real: tuple[LLaMA, Pairs]) -> None:
    model, pairs = real[0], real[1][:8]
    scorer = Scorer(model, budget=64)
    scorer.score(pairs)
    there = scorer.cache.pages
    assert scorer.cache.free - (scorer.cache.max_pages - there) == there
    scorer.score(pairs)
    assert scorer.cache.pages == there


def test_pages_come_back_after_an_error(real: tuple[LLaMA, Pairs]) -> None:
    model, pairs = real[0], real[1][:4]
    scorer = Scorer(model, budget=64)

    def fail(answers: list[tuple[int, Likelihood]]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scorer.score(pairs, fail)
    assert scorer.cache.free == scorer.cache.max_pages  # none is held
    assert scorer.score(pairs[:1]) == Scorer(model, budget=64).score(pairs[:1])


def test_answers_come_as_they_are_complete() -> None:
    model = LLaMA(LlamaConfig.preset("debug"))
    pairs = [([1, 2, i], [3, 4]) for i in range(20)]
    said: list[tuple[int, Likelihood]] = []
    scorer = Scorer(model, budget=8)
    found = scorer.score(pairs, said.extend)
    assert sorted(said) == list(enumerate(found))
    assert scorer.work.passes > 4


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([([], [1])], r"requests\[0\]: expected a context"),
        ([([1], [1]), ([1], [])], r"requests\[1\]: expected a context"),
        ([([1] * 300, [1])], "256 in all, got 300 and 1"),
    ],
)
def test_bad_requests(requests: Any, message: str) -> None:
    config = LlamaConfig(256, 32, 2, 1, 0.0, max_seq_len=256)
    with pytest.raises(ValueError, match=message):
        Scorer(LLaMA(config)).score(requests)


def test_nothing_to_do() -> None:
    assert Scorer(LLaMA(LlamaConfig.preset("debug"))).score([]) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_summed_in_float32(real: tuple[LLaMA, Pairs], dtype: torch.dtype) -> None:
    """Against the head in float64 on the same hidden states: logits are not rounded to 16 bits."""
    model, pairs = real
    context, continuation = pairs[0]
    small = LLaMA(model.config)
    small.load_state_dict(model.state_dict())
    small = small.to(dtype)
    found = Scorer(small).score([(context, continuation)])[0]
    with torch.no_grad():
        hidden = small.hidden_states(torch.tensor([[*context, *continuation[:-1]]]))
    logits = hidden[0, len(context) - 1 :].double() @ small.head_weight.double().T
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(continuation).unsqueeze(1))
    assert found.logprob == pytest.approx(logprobs.sum().item(), rel=1e-4)


def pairs_of(prefix: int, ends: list[tuple[int, int]]) -> Pairs:
    """Requests with ``prefix`` tokens in common, then (length, number scored) of their own."""
    pairs = []
    for first, (length, scored) in enumerate(ends):
        tokens = [*range(3, 3 + prefix), *((7 * first + 5 * t) % 128 for t in range(length))]
        pairs.append((tokens[:-scored], tokens[-scored:]))
    return pairs


SHAPES = {
    "choices of one question": pairs_of(20, [(5, 4), (9, 8), (1, 1), (30, 30)]),
    "one request": pairs_of(5, [(3, 3)]),
    "nothing in common": pairs_of(0, [(5, 1), (40, 39), (2, 1), (17, 6)]),
    "scored from within the common part": pairs_of(12, [(4, 10), (6, 6)]),
    "two tokens in all": pairs_of(1, [(1, 1), (1, 1)]),
    "two choices alike": pairs_of(6, [(4, 4)]) * 2,
}


@pytest.mark.parametrize("pairs", SHAPES.values(), ids=SHAPES.keys())
def test_likelihoods_are_those_of_each_request_alone(small_model: LLaMA, pairs: Pairs) -> None:
    result = Scorer(small_model).score(pairs)
    expected = one_by_one(small_model, pairs, torch.float32)
    # Every position's loss is a float32 near 5 with a few roundings; they add up.
    longest = max(len(continuation) for _, continuation in pairs)
    tolerance = longest * 5 * 4 * torch.finfo(torch.float32).eps
    assert [a.logprob for a in result] == pytest.approx([b[0] for b in expected], abs=tolerance)
    assert [a.greedy for a in result] == [b[1] for b in expected]


def test_the_model_tells_choices_apart(small_model: LLaMA) -> None:
    values = [a.logprob for a in Scorer(small_model).score(SHAPES["choices of one question"])]
    assert max(values) - min(values) > 10
