"""Calibration: whether a share p of the questions answered with confidence p is correct."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llama_fast.eval.report.questions import Question

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Questions whose confidence lies in (low, high]; at least one."""

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
        bins: the bins that are not empty.
    """

    n: int
    ece: float
    bins: tuple[Bin, ...]


def confidences(questions: Iterable[Question]) -> list[tuple[float, bool]]:
    """For each question, the confidence in the most likely option and whether it is right.

    The confidence is the softmax over the options' log-probabilities, without length
    normalisation: P(option | context, one of the options). A metric with length normalisation may
    pick another option.
    """
    result = []
    for question in questions:
        if question.gold is None or len(question.options) < 2:
            continue
        logprobs = np.array([option.logprob for option in question.options], dtype=np.float64)
        if not np.isfinite(logprobs.max()):
            continue
        shares = np.exp(logprobs - logprobs.max())
        best = int(logprobs.argmax())
        result.append((float(shares[best] / shares.sum()), best == question.gold))
    return result


def calibrate(pairs: Sequence[tuple[float, bool]], bins: int = BINS) -> Calibration | None:
    """The reliability diagram with `bins` bins of equal width; None without pairs."""
    if not pairs:
        return None
    confidence = np.array([pair[0] for pair in pairs])
    right = np.array([pair[1] for pair in pairs], dtype=np.float64)
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    result, ece = [], 0.0
    for i in range(bins):
        inside = which == i
        n = int(inside.sum())
        if n:
            mean, accuracy = float(confidence[inside].mean()), float(right[inside].mean())
            ece += n / len(pairs) * abs(accuracy - mean)
            result.append(Bin(i / bins, (i + 1) / bins, n, mean, accuracy))
    return Calibration(len(pairs), ece, tuple(result))
