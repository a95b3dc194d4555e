"""Scores a model on multiple-choice questions by the likelihood of each choice.

The choice whose text the model finds likeliest wins; "length-normalised" divides its log-likelihood
by its number of characters first, as EleutherAI's lm-evaluation-harness does for ``acc_norm``
(Gao et al. 2021), so that long answers are not punished for being long.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import llama_fast
from llama_fast.demo.questions import Question
from llama_fast.models import KVCache, LLaMA
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
def log_likelihoods(model: LLaMA, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Log-likelihood of the last tokens of each row, given those before them.

    The rows go through the model as one batch. What they begin with in common (the question, when
    they are its choices) goes through it once, into a key-value cache that all rows then use.

    Args:
        model: in evaluation mode.
        rows: (tokens, number of tokens at the end to score) each.

    Returns:
        The sums of log-probabilities (natural logarithm), in the order of ``rows``.
    """
    weight = model.head_weight
    # The last token before the scored ones predicts the first of them: it belongs to the rows.
    limit = min(len(tokens) - scored for tokens, scored in rows) - 1
    shared = 0
    while shared < limit and len({tokens[shared] for tokens, _ in rows}) == 1:
        shared += 1
    width = max(len(tokens) for tokens, _ in rows) - shared
    cache = KVCache(model.config, len(rows), shared + width, weight.dtype, weight.device)
    if shared:
        start = KVCache(model.config, 1, shared, weight.dtype, weight.device)
        model.hidden_states(torch.tensor([rows[0][0][:shared]], device=weight.device), cache=start)
        cache.k[:, :, :, :shared], cache.v[:, :, :, :shared] = start.k, start.v
        cache.length = shared
    tails = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), IGNORE)
    for at, (tokens, scored) in enumerate(rows):
        tail = torch.tensor(tokens[shared:])
        # Padding comes last, where causal attention of the positions that count does not see it.
        tails[at, : len(tail)] = tail
        targets[at, len(tail) - scored - 1 : len(tail) - 1] = tail[len(tail) - scored :]
    hidden = model.hidden_states(tails.to(weight.device), cache=cache)
    losses: torch.Tensor = llama_fast.linear_cross_entropy(
        hidden, weight, targets.to(weight.device), reduction="none", ignore_index=IGNORE
    )
    return (-losses.double().sum(dim=1)).tolist()


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
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Score:
    """Asks the model every question; see :func:`log_likelihoods` and :func:`summarise`.

    ``progress`` is called with (questions done, questions in all, the task) after each question.
    """
    likelihoods = []
    for question in questions:
        rows = [split_tokens(tokenizer, question.context, choice) for choice in question.choices]
        likelihoods.append(log_likelihoods(model, rows))
        progress(len(likelihoods), len(questions), task)
    return summarise(task, questions, likelihoods)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
