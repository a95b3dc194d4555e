"""Scores of a model on multiple-choice questions, by the likelihood of each choice.

The choice whose text the model finds likeliest wins. "Length-normalised" divides its log-likelihood
by its number of characters first, as EleutherAI's lm-evaluation-harness does for ``acc_norm``
(Gao et al. 2021), so that long answers are not at a disadvantage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_fast.data import DataError
from llama_fast.data.multiple_choice import MultipleChoice, read_multiple_choice, sample
from llama_fast.eval.engine import Likelihood, Scorer
from llama_fast.models import LLaMA
from llama_fast.tokenizers import Tokenizer

__all__ = ["Benchmarks", "Score", "encode_choice", "score", "summarize"]


@dataclass(frozen=True)
class Score:
    """The accuracy of a model on one task.

    Attributes:
        task: name of the task.
        count: number of questions.
        accuracy: share answered rightly by log-likelihood per character.
        stderr: standard error of ``accuracy``.
        raw_accuracy: the same without length normalisation.
        chance: expected accuracy of guessing.
    """

    task: str
    count: int
    accuracy: float
    stderr: float
    raw_accuracy: float
    chance: float


def encode_choice(tokenizer: Tokenizer, context: str, choice: str) -> tuple[list[int], list[int]]:
    """Token ids of the context and of the continuation " choice".

    Both are encoded together, as a tokenizer may split them differently apart.

    Raises:
        ValueError: the context leaves no token from which to predict the first of the choice.
    """
    tokens = tokenizer.encode(f"{context} {choice}")
    prompt = min(len(tokenizer.encode(context)), len(tokens) - 1)
    if prompt < 1:
        raise ValueError(f"context: expected text of at least one token, got {context!r}")
    return tokens[:prompt], tokens[prompt:]


def score(
    model: LLaMA,
    tokenizer: Tokenizer,
    task: str,
    questions: Sequence[MultipleChoice],
    progress: Callable[[int, int, str], None] = lambda done, total, task: None,
) -> Score:
    """The score of a model on the questions of a task.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        task: name for the score.
        questions: at least one.
        progress: called with (questions done, questions in all, task) after each question.

    Raises:
        ValueError: no questions, an empty context, or a question longer than the model takes.
    """
    requests, owners = [], []
    for number, question in enumerate(questions):
        for choice in question.choices:
            requests.append(encode_choice(tokenizer, question.context, choice))
            owners.append(number)
    open_choices, done = Counter(owners), 0

    def count(answers: list[tuple[int, Likelihood]]) -> None:
        nonlocal done
        for request, _ in answers:
            open_choices[owners[request]] -= 1
            if open_choices[owners[request]] == 0:
                done += 1
                progress(done, len(questions), task)

    answers = iter(Scorer(model).score(requests, count))
    return summarize(task, questions, [[next(answers)[0] for _ in q.choices] for q in questions])


def summarize(
    task: str, questions: Sequence[MultipleChoice], likelihoods: Sequence[Sequence[float]]
) -> Score:
    """The accuracies that follow from the log-likelihood of every choice of every question.

    The standard error is that of a mean of n independent 0/1 values, sqrt(p (1 - p) / (n - 1)).

    Raises:
        ValueError: no questions, or another number of likelihoods than of choices.
    """
    if not questions:
        raise ValueError("questions: expected at least one, got none")
    right = raw = chance = 0.0
    for question, values in zip(questions, likelihoods, strict=True):
        if len(values) != len(question.choices):
            raise ValueError(
                f"likelihoods: expected {len(question.choices)} for question {question.id}, "
                f"got {len(values)}"
            )
        per_character = [v / len(c) for v, c in zip(values, question.choices, strict=True)]
        right += _argmax(per_character) == question.gold
        raw += _argmax(values) == question.gold
        chance += 1 / len(values)
    n = len(questions)
    p = right / n
    stderr = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else math.nan
    return Score(task, n, p, stderr, raw / n, chance / n)


class Benchmarks:
    """Files of multiple-choice questions, to score a model on again and again.

    Args:
        files: JSON Lines, of different names; see :mod:`llama_fast.data.multiple_choice`.
        tokenizer: of the model.
        count: questions of each file, always the same ones; 0 takes all.
        seed: of their choice.
        max_seq_len: longest sequence that the model accepts.

    Raises:
        FileNotFoundError: a file is not there.
        DataError: a file that holds something else, or two of the same name.
        ValueError: a question longer than `max_seq_len`.
    """

    def __init__(
        self, files: Sequence[str], tokenizer: Tokenizer, count: int, seed: int, max_seq_len: int
    ) -> None:
        self.tokenizer = tokenizer
        self.tasks: dict[str, list[MultipleChoice]] = {}
        for file in map(Path, files):
            if file.stem in self.tasks:
                raise DataError(f"benchmarks: expected files of different names, two are {file}")
            questions = read_multiple_choice(file)
            self.tasks[file.stem] = sample(questions, count or len(questions), seed)
        for name, task in self.tasks.items():
            for question in task:  # now, rather than after hours of training
                longest = max(
                    sum(map(len, encode_choice(tokenizer, question.context, choice)))
                    for choice in question.choices
                )
                if longest > max_seq_len:
                    raise ValueError(
                        f"benchmarks: expected questions of at most max_seq_len = {max_seq_len} "
                        f"tokens, {name} has one of {longest}: {question.id}"
                    )

    def score(self, model: LLaMA) -> list[Score]:
        """The scores of a model, in its weights' dtype. It is in evaluation mode meanwhile."""
        was_training = model.training
        model.eval()
        try:
            return [score(model, self.tokenizer, name, task) for name, task in self.tasks.items()]
        finally:
            model.train(was_training)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
