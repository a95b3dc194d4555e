import math
import re

import pytest
import torch

from llama_fast.data.multiple_choice import MultipleChoice
from llama_fast.eval.multiple_choice import encode_choice, score, summarize
from llama_fast.models import LLaMA
from llama_fast.tokenizers import Tokenizer


class Characters(Tokenizer):
    """One id a character; "st" is one token, so that text splits differently when joined."""

    def __init__(self) -> None:
        super().__init__(128, None, None, {})

    def _encode(self, text: str, continues: bool) -> list[int]:
        return [ord(c) for c in text.replace("st", "\x01")]

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        spans = [m.span() for m in re.finditer("st|.", text, re.DOTALL)]
        return self._encode(text, False), spans

    def _decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids)).replace("\x01", "st")


def by_hand(model: LLaMA, tokens: list[int], scored: int) -> float:
    """One row alone, logits and log-softmax in float64."""
    with torch.inference_mode():
        logits = model(torch.tensor([tokens]))[0].double()
    log_p = logits.log_softmax(-1)
    return sum(log_p[t - 1, tokens[t]].item() for t in range(len(tokens) - scored, len(tokens)))


def test_progress_counts_every_question(small_model: LLaMA) -> None:
    calls = []
    questions = [MultipleChoice(str(i), "abc", ("x", "yz"), 0) for i in range(3)]
    score(small_model, Characters(), "toy", questions, lambda *call: calls.append(call))
    assert calls == [(1, 3, "toy"), (2, 3, "toy"), (3, 3, "toy")]


def test_summary_by_hand() -> None:
    """Three questions whose winner the length decides.

    a: -4/1 < -6/3 per character: "long" wins, raw "s" wins.       gold: long
    b: -2/2 > -9/3: the first wins either way.                     gold: second
    c: -3/3 > -8/2, -8/4, -9/1, -9/1: the first wins either way.   gold: first
    """
    questions = [
        MultipleChoice("a", "q", ("s", "lon"), 1),
        MultipleChoice("b", "q", ("ab", "abc"), 1),
        MultipleChoice("c", "q", ("abc", "ab", "abcd", "x", "y"), 0),
    ]
    got = summarize("toy", questions, [[-4.0, -6.0], [-2.0, -9.0], [-3.0, -8.0, -8.0, -9.0, -9.0]])
    assert got.count == 3
    assert got.accuracy == pytest.approx(2 / 3)
    assert got.raw_accuracy == pytest.approx(1 / 3)
    assert got.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 5) / 3)
    assert got.stderr == pytest.approx(math.sqrt((2 / 3) * (1 / 3) / 2))


def test_standard_error_is_that_of_the_sample() -> None:
    right = [1.0] * 7 + [0.0] * 13
    questions = [MultipleChoice(str(i), "q", ("a", "b"), 0) for i in range(20)]
    got = summarize("toy", questions, [[r, 0.5] for r in right])
    values = torch.tensor(right, dtype=torch.float64)
    assert got.accuracy == pytest.approx(0.35)
    assert got.stderr == pytest.approx(values.std().item() / math.sqrt(20))


def test_score_puts_the_parts_together(small_model: LLaMA) -> None:
    questions = [
        MultipleChoice("a", "the first", ("stone", "x", "water and more"), 2),
        MultipleChoice("b", "q", ("one", "two"), 0),
    ]
    got = score(small_model, Characters(), "toy", questions)
    likelihoods = []
    for question in questions:
        rows = []
        for choice in question.choices:
            context = Characters().encode(question.context)
            tokens = Characters().encode(question.context + " " + choice)
            rows.append(by_hand(small_model, tokens, len(tokens) - len(context)))
        likelihoods.append(rows)
    want = summarize("toy", questions, likelihoods)
    assert got == want


def test_the_space_belongs_to_the_choice() -> None:
    assert encode_choice(Characters(), "ab", "cd") == ([97, 98], [32, 99, 100])


def test_errors(small_model: LLaMA) -> None:
    with pytest.raises(ValueError, match="context: expected text of at least one token, got ''"):
        encode_choice(Characters(), "", "x")
    with pytest.raises(ValueError, match="questions: expected at least one"):
        summarize("toy", [], [])
    with pytest.raises(ValueError, match="expected 2 for question a, got 1"):
        summarize("toy", [MultipleChoice("a", "q", ("x", "y"), 0)], [[-1.0]])


def test_one_question_has_no_standard_error() -> None:
    got = summarize("toy", [MultipleChoice("a", "q", ("x", "y"), 0)], [[-1.0, -2.0]])
    assert (got.accuracy, math.isnan(got.stderr)) == (1.0, True)
