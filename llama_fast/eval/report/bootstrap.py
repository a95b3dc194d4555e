"""The paired bootstrap, which tests whether one run is better than another on equal questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
# Numbers drawn at once. Bounds the memory of tasks with many distinct differences.
MAX_DRAWS = 4_000_000


@dataclass(frozen=True)
class Difference:
    """Mean of B minus mean of A.

    Attributes:
        value: the difference.
        low, high: bounds of the 95 % percentile interval.
        p: two-sided p-value: twice the smaller share of resamples on one side of zero, at most 1.
    """

    value: float
    low: float
    high: float
    p: float


def resample_means(
    differences: Sequence[float] | npt.NDArray[np.float64],
    resamples: int = RESAMPLES,
    seed: int | Sequence[int] = 0,
) -> npt.NDArray[np.float64]:
    """Means of `resamples` samples with replacement, each as large as the data.

    Drawn as multinomial counts of the distinct values, which has the same distribution as drawing
    questions and is fast for scores of 0 or 1.

    Args:
        differences: B - A for each question; not empty.
        resamples: number of samples.
        seed: seed of the random generator.

    Raises:
        ValueError: no differences, or `resamples` < 1.
    """
    if len(differences) == 0:
        raise ValueError("differences: expected at least one question, got none")
    if resamples < 1:
        raise ValueError(f"resamples: expected a number >= 1, got {resamples}")
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    generator = np.random.default_rng(seed)
    n, step = len(differences), max(1, MAX_DRAWS // len(values))
    means = np.empty(resamples)
    for begin in range(0, resamples, step):
        end = min(begin + step, resamples)
        means[begin:end] = generator.multinomial(n, counts / n, size=end - begin) @ values / n
    return means


def summarise_resamples(value: float, means: npt.NDArray[np.float64]) -> Difference:
    """Interval and p-value from the resampled differences (Efron & Tibshirani 1993, chapter 13).

    One is added to the counts so that p is never 0, which no finite number of draws can show.
    """
    low, high = np.quantile(means, [0.025, 0.975])
    below = (np.count_nonzero(means <= 0) + 1) / (len(means) + 1)
    above = (np.count_nonzero(means >= 0) + 1) / (len(means) + 1)
    return Difference(value, float(low), float(high), float(min(1.0, 2 * min(below, above))))
