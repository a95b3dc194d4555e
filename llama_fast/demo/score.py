"""Scores a model on multiple-choice questions by the likelihood of each choice.

The choice whose text the model finds likeliest wins; "length-normalised" divides its log-likelihood
by its number of characters first, as EleutherAI's lm-evaluation-harness does for ``acc_norm``
(Gao et al. 2021), so that long answers are not punished for being long.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llama_fast.demo.questions import Question
from llama_fast.models import LLaMA
from llama_fast.tokenizers import Tokenizer

__all__ = ["Score", "log_likelihoods", "score", "split_tokens", "summarise"]

IGNORE = -100


@dataclass(frozen=True)
class Score:
    """How a model did on one task.

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


def split_tokens(tokenizer: Tokenizer, context: str, choice: str) -> tuple[list[int], int]:
    """Tokens of "context choice" and how many of them, at the end, belong to the choice.

    Both are encoded together, since a tokenizer may see them differently apart.

    Raises:
        ValueError: nothing is left of the context to predict the choice's first token from.
    """
    tokens = tokenizer.encode(f"{context} {choice}")
    prompt = min(len(tokenizer.encode(context)), len(tokens) - 1)
    if prompt < 1:
        raise ValueError(f"context: expected text of at least one token, got {context!r}")
    return tokens, len(tokens) - prompt


@torch.inference_mode()
def log_likelihoods(
    model: LLaMA,
    rows: Sequence[tuple[list[int], int]],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[float]:
    """Log-likelihood of the last tokens of each row, given those before them.

    Args:
        model: a ``llama_fast.LLaMA``.
        rows: (tokens, number of tokens at the end to score) each.
        batch_tokens: upper bound of rows times longest row in one forward pass (one row at least).
        progress: called with (rows done, rows in all, "") after each batch.

    Returns:
        The sums of log-probabilities (natural logarithm), in the order of ``rows``.
    """
    device = next(model.parameters()).device
    # Rows of like length share a batch: little padding. The longest first: memory peaks at once.
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
    result = [0.0] * len(rows)
    done = 0
    while done < len(order):
        width = len(rows[order[done]][0])
        batch = order[done : done + max(1, batch_tokens // width)]
        tokens = torch.zeros(len(batch), width, dtype=torch.int64)
        targets = torch.full((len(batch), width), IGNORE)
        for at, row in enumerate(batch):
            ids, scored = rows[row]
            tokens[at, : len(ids)] = torch.tensor(ids)
            # Position t predicts token t + 1. Padding comes last, where causal attention of the
            # positions that count does not see it.
            targets[at, len(ids) - scored - 1 : len(ids) - 1] = tokens[at, len(ids) - scored :][
                :scored
            ]
        loss = model.loss(
            tokens.to(device), targets.to(device), reduction="none", ignore_index=IGNORE
        )
        sums = -loss.view(len(batch), width).double().sum(dim=1)
        for row, value in zip(batch, sums.tolist(), strict=True):
            result[row] = value
        done += len(batch)
        progress(done, len(order), "")
    return result


def summarise(
    task: str, questions: Sequence[Question], likelihoods: Sequence[Sequence[float]]
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


def score(
    model: LLaMA,
    tokenizer: Tokenizer,
    task: str,
    questions: Sequence[Question],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Score:
    """Asks the model every question; see :func:`log_likelihoods` and :func:`summarise`."""
    rows = [split_tokens(tokenizer, q.context, choice) for q in questions for choice in q.choices]
    flat = log_likelihoods(model, rows, batch_tokens=batch_tokens, progress=progress)
    likelihoods, at = [], 0
    for question in questions:
        likelihoods.append(flat[at : at + len(question.choices)])
        at += len(question.choices)
    return summarise(task, questions, likelihoods)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
