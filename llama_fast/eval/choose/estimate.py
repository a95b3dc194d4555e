"""The mean score of benchmarks, estimated from some of their questions, with an interval.

A benchmark's score is the mean of its tasks, weighted by their numbers of questions; the mean over
benchmarks has equal weights, as a suite's columns have. A task of N questions of which n are drawn
adds w^2 (1 - n/N) v / n to the variance (stratified sampling without replacement; Cochran 1977,
"Sampling Techniques", section 5.3). The variance v of a question is estimated over the whole
benchmark, because a task may have few questions, and for scores of 0 and 1 with two more right and
two more wrong answers (Agresti & Coull 1998), so that a benchmark without a right answer is not
taken for a certain zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "Sample", "estimate"]

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Sample:
    """The questions of a benchmark that were asked.

    Attributes:
        name: the benchmark.
        scores: for each of its tasks, the scores of the asked questions, from 0 to 1.
        populations: for each of its tasks, the number of all questions.
    """

    name: str
    scores: tuple[tuple[float, ...], ...]
    populations: tuple[int, ...]

    @property
    def asked(self) -> int:
        """Number of questions that were asked."""
        return sum(map(len, self.scores))

    def mean(self) -> float:
        """The estimate of the score, from 0 to 1."""
        total = sum(self.populations)
        tasks = zip(self.scores, self.populations, strict=True)
        return math.fsum(size / total * math.fsum(s) / len(s) for s, size in tasks)

    def variance(self) -> float:
        """The variance of :meth:`mean`; 0 if every question was asked."""
        total = sum(self.populations)
        unit = _unit_variance([score for task in self.scores for score in task])
        return math.fsum(
            (size / total) ** 2 * (1 - len(s) / size) * unit / len(s)
            for s, size in zip(self.scores, self.populations, strict=True)
        )


@dataclass(frozen=True)
class Estimate:
    """An estimate in percent.

    Attributes:
        value: the estimate.
        low, high: its 95 % interval.
        samples: what it was computed from.
    """

    value: float
    low: float
    high: float
    samples: tuple[Sample, ...]


def estimate(samples: Sequence[Sample]) -> Estimate:
    """Estimate the mean score of benchmarks, each with equal weight.

    Raises:
        ValueError: there is no benchmark, or a task without a question that was asked.
    """
    if not samples:
        raise ValueError("samples: expected at least one benchmark, got none")
    for sample in samples:
        if not sample.scores or not all(sample.scores):
            raise ValueError(f"samples: expected questions of every task of {sample.name}")
    value = 100 * math.fsum(sample.mean() for sample in samples) / len(samples)
    spread = math.sqrt(math.fsum(sample.variance() for sample in samples)) / len(samples)
    half = 100 * Z95 * spread
    return Estimate(value, max(0.0, value - half), min(100.0, value + half), tuple(samples))


def _unit_variance(scores: Sequence[float]) -> float:
    n = len(scores)
    mean = math.fsum(scores) / n
    if all(score in (0, 1) for score in scores):
        p = (math.fsum(scores) + 2) / (n + 4)
        return p * (1 - p)
    return (math.fsum((score - mean) ** 2 for score in scores) + 0.25) / n
