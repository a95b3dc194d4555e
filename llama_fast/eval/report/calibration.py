"""Calibration: whether a share p of the questions answered with confidence p is correct."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from llama_fast.eval.report.questions import Question

BINS = 10
# Options of more characters are texts, whose probabilities depend most on their lengths.
LONGEST_OPTION = 20
# Above this number of questions in a bin, the number of right ones is taken as normal.
_EXACT = 200


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
        floor: mean of `ece` for a model that is right with exactly these confidences. It is above 0
            because a bin has a limited number of questions.
        bins: the bins that are not empty.
    """

    n: int
    ece: float
    floor: float
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
    result, ece, floor = [], 0.0, 0.0
    for i in range(bins):
        inside = which == i
        n = int(inside.sum())
        if n:
            mean, accuracy = float(confidence[inside].mean()), float(right[inside].mean())
            ece += n / len(pairs) * abs(accuracy - mean)
            floor += _mean_distance(confidence[inside]) / len(pairs)
            result.append(Bin(i / bins, (i + 1) / bins, n, mean, accuracy))
    return Calibration(len(pairs), ece, floor, tuple(result))


def _mean_distance(confidence: npt.NDArray[np.float64]) -> float:
    """Mean of |number right - sum of the confidences|, if each is right with its confidence."""
    if len(confidence) > _EXACT:
        return math.sqrt(2 / math.pi * float((confidence * (1 - confidence)).sum()))
    chances = np.ones(1)  # of each number of right answers
    for chance in confidence:
        chances = np.convolve(chances, [1 - chance, chance])
    return float(chances @ np.abs(np.arange(len(chances)) - confidence.sum()))


def has_long_options(questions: Iterable[Question]) -> bool:
    """Whether the options are texts, so that the confidences say little.

    Decided by the median over the questions of the longest option, without a common ending (the
    options of WinoGrande are two names before the same text).
    """
    lengths = []
    for question in questions:
        texts = [option.text for option in question.options]
        if len(texts) > 1:
            letters = zip(*(reversed(text) for text in texts), strict=False)
            ending = sum(1 for _ in takewhile(lambda at: len(set(at)) == 1, letters))
            lengths.append(max(map(len, texts)) - ending)
    return bool(lengths) and statistics.median(lengths) > LONGEST_OPTION
