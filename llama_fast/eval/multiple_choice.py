"""Scores a model on multiple-choice questions by the likelihood of each choice.

The model's answer is the most likely choice. With length normalisation, the log-likelihood of a
choice is first divided by its number of characters, so that long choices are not at a disadvantage,
as in ``acc_norm`` of EleutherAI's lm-evaluation-harness (Gao et al. 2021).
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
        accuracy: share of questions answered correctly, with length normalisation.
        stderr: standard error of ``accuracy``.
        raw_accuracy: share of questions answered correctly, without length normalisation.
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

    Both are encoded as one text, because the tokenizer might split separate texts differently.

    Raises:
        ValueError: no token is left before the choice to predict its first token from.
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
    """Score a model on the questions of a task.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the tokenizer of the model.
        task: name of the task, for the score.
        questions: the questions, at least one.
        progress: called as ``progress(questions done, number of questions, task)`` after each
            question.

    Raises:
        ValueError: there are no questions, a context is empty, or a question is longer than the
            model's max_seq_len.
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
    """Compute the accuracies from the log-likelihood of every choice of every question.

    The standard error is that of a mean of n independent 0/1 values, sqrt(p (1 - p) / (n - 1)).

    Raises:
        ValueError: there are no questions, or the numbers of likelihoods and choices differ.
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
    """Files of multiple-choice questions on which a model is scored repeatedly during training.

    Args:
        files: JSON Lines files with different names; see :mod:`llama_fast.data.multiple_choice`.
        tokenizer: the tokenizer of the model.
        count: number of questions of each file, always the same ones; 0 for all.
        seed: seed of their selection.
        max_seq_len: longest sequence that the model accepts.

    Raises:
        FileNotFoundError: a file does not exist.
        DataError: a file does not contain questions, or two files have the same name.
        ValueError: a question is longer than `max_seq_len`.
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
            for question in task:  # fail now rather than after hours of training
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
        """Score a model in its weights' dtype; it is in evaluation mode until this returns."""
        was_training = model.training
        model.eval()
        try:
            return [score(model, self.tokenizer, name, task) for name, task in self.tasks.items()]
        finally:
            model.train(was_training)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
