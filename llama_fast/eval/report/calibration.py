"""Does a model that says 70 % answer 70 % of such questions right?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llama_fast.eval.report.questions import Question

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Questions whose confidence lies in (low, high]; means are NaN-free, as no bin is empty."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """A reliability diagram.

    Attributes:
        n: multiple-choice questions with one known right option.
        ece: expected calibration error: mean of |accuracy - confidence| over the bins, weighted by
            their questions (Guo et al. 2017, equation 3).
        bins: those with questions in them.
    """

    n: int
    ece: float
    bins: tuple[Bin, ...]


def confidences(questions: Iterable[Question]) -> list[tuple[float, bool]]:
    """Confidence in the likeliest option, and whether it is right, a question.

    The confidence is the softmax over the options' log-probabilities as the model gives them, not
    divided by length: it is P(option | context, one of the options). What is likeliest can differ
    from what a metric with length normalisation picks.
    """
    found = []
    for question in questions:
        if question.gold is None or len(question.options) < 2:
            continue
        logprobs = np.array([option.logprob for option in question.options], dtype=np.float64)
        if not np.isfinite(logprobs.max()):
            continue
        shares = np.exp(logprobs - logprobs.max())
        best = int(logprobs.argmax())
        found.append((float(shares[best] / shares.sum()), best == question.gold))
    return found


def calibrate(pairs: Sequence[tuple[float, bool]], bins: int = BINS) -> Calibration | None:
    """Put confidences into `bins` of equal width; None if there are none."""
    if not pairs:
        return None
    confidence = np.array([pair[0] for pair in pairs])
    right = np.array([pair[1] for pair in pairs], dtype=np.float64)
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found, ece = [], 0.0
    for at in range(bins):
        inside = which == at
        n = int(inside.sum())
        if n:
            mean, accuracy = float(confidence[inside].mean()), float(right[inside].mean())
            ece += n / len(pairs) * abs(accuracy - mean)
            found.append(Bin(at / bins, (at + 1) / bins, n, mean, accuracy))
    return Calibration(len(pairs), ece, tuple(found))
