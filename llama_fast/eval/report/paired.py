"""Tests and intervals for the difference of two runs on the same questions.

The p-value is that of the sign-flip test: if the runs do not differ, each question is as likely to
be won by A as by B, so every assignment of signs to the differences is equally likely. For scores
of 0 or 1 this is McNemar's exact test. It needs no minimum of questions and holds for any weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

# Draws of signs where there are too many assignments to list.
FLIPS = 10_000
# Assignments of at most this many signs are listed.
_LISTED = 12
_Z95 = 1.959963984540054

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Mean of B minus mean of A.

    Attributes:
        value: the difference.
        low, high: bounds of the 95 % confidence interval; None if it cannot be estimated (one
            question, or scores other than 0 and 1 that all differ by the same amount).
        p: two-sided p-value of the sign-flip test.
    """

    value: float
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True)
class Sample:
    """The questions of a task.

    Attributes:
        differences: B - A for each question; scores from 0 to 1 if `is_binary`.
        clusters: number of each question's cluster, such as its passage. Questions of a cluster
            are not independent.
        is_binary: whether all scores are 0 or 1.
    """

    differences: Array
    clusters: npt.NDArray[np.int64]
    is_binary: bool

    @classmethod
    def of(
        cls, a: Sequence[float], b: Sequence[float], clusters: Sequence[object] | None = None
    ) -> Sample:
        """The sample with scores `a` and `b`; each question is a cluster of its own by default.

        Raises:
            ValueError: there are no questions, or the lengths differ.
        """
        names = range(len(a)) if clusters is None else clusters
        if not len(a) == len(b) == len(names) or len(a) == 0:
            raise ValueError(
                f"a: expected at least one question, as many as in b and clusters, got {len(a)}, "
                f"{len(b)} and {len(names)}"
            )
        numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
        is_binary = set(a) | set(b) <= {0, 1}
        return cls(
            np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64),
            np.array([numbers[name] for name in names], dtype=np.int64),
            is_binary,
        )

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.differences)

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(self.differences.mean())

    def variance(self) -> float:
        """Variance of the mean, from the sums of the clusters; at least two clusters."""
        sums = np.bincount(self.clusters, weights=self.differences - self.mean)
        return float(sums @ sums) / self.n**2 * len(sums) / (len(sums) - 1)


def difference(
    samples: Sequence[Sample],
    weights: Sequence[float],
    *,
    flips: int = FLIPS,
    seed: int | Sequence[int] = 0,
) -> Difference:
    """The weighted mean of the samples' differences, with its interval and p-value.

    The variance is the sum of the samples' variances: samples (tasks) are strata, whose own
    differences are not noise. Samples of one cluster have no variance of their own; together they
    are one stratum. If scores are 0 or 1, two questions are added, one won and one lost (Bonett &
    Price 2012), without which a few questions or equal answers give an interval that is too short.

    Args:
        samples: the tasks.
        weights: weight of each; they sum to 1.
        flips: number of assignments of signs that are drawn, if all are too many.
        seed: seed of the draw.

    Raises:
        ValueError: there are no samples, or `flips` < 1.
    """
    if not samples or len(samples) != len(weights):
        raise ValueError(f"samples: expected one weight each, got {len(samples)}, {len(weights)}")
    if flips < 1:
        raise ValueError(f"flips: expected a number >= 1, got {flips}")
    value = math.fsum(w * s.mean for s, w in zip(samples, weights, strict=True))
    sums = [
        w / s.n * np.bincount(s.clusters, weights=s.differences)
        for s, w in zip(samples, weights, strict=True)
    ]
    p = sign_flip_test(np.concatenate(sums), flips, seed)
    low, high = _interval(samples, weights, value)
    return Difference(value, low, high, p)


def sign_flip_test(sums: Array, flips: int = FLIPS, seed: int | Sequence[int] = 0) -> float:
    """Two-sided p-value of the hypothesis that each number's sign is random.

    Exact (binomial) if all numbers other than 0 have the same size, or if there are few; else from
    `flips` draws, one added so that p is never 0.
    """
    found, counts = np.unique(np.abs(sums).round(15), return_counts=True)
    sizes, counts = found[found > 0], counts[found > 0]
    observed = abs(float(sums.sum())) * (1 - 1e-9) - 1e-15
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        n = int(counts[0])
        won = int((sums > 0).sum())
        return min(1.0, 2 * float(stats.binom.cdf(min(won, n - won), n, 0.5)))
    total = int(counts.sum())
    if total <= _LISTED:
        signs = 2 * ((np.arange(2**total)[:, None] >> np.arange(total)) & 1) - 1
        return float(np.mean(np.abs(signs @ np.repeat(sizes, counts)) >= observed))
    generator = np.random.default_rng(seed)
    drawn = np.zeros(flips)
    for size, count in zip(sizes, counts, strict=True):
        drawn += size * (2 * generator.binomial(count, 0.5, flips) - count)
    return float((np.count_nonzero(np.abs(drawn) >= observed) + 1) / (flips + 1))


def _interval(
    samples: Sequence[Sample], weights: Sequence[float], value: float
) -> tuple[float, float] | tuple[None, None]:
    several = [(s, w) for s, w in zip(samples, weights, strict=True) if s.num_clusters > 1]
    alone = np.array(
        [w * s.mean for s, w in zip(samples, weights, strict=True) if s.num_clusters == 1]
    )
    if not several and len(alone) < 2:
        return None, None
    # Strata: their part of the variance, the same for a variance of 1 a cluster, and freedom.
    parts = [(w**2 * s.variance(), w**2 / s.num_clusters, s.num_clusters - 1) for s, w in several]
    if len(alone):
        of_alone = [w for s, w in zip(samples, weights, strict=True) if s.num_clusters == 1]
        size = math.fsum(w * w for w in of_alone)
        if len(alone) > 1:
            spread = float(((alone - alone.mean()) ** 2).sum()) * len(alone) / (len(alone) - 1)
            parts.append((spread, size, len(alone) - 1))
        else:
            # The only one: it varies as the others do.
            mean = math.fsum(v for v, _, _ in parts) / math.fsum(u for _, u, _ in parts)
            parts.append((size * mean, size, 1))
    variance = math.fsum(v for v, _, _ in parts)
    # Satterthwaite's degrees of freedom for equal variances: estimated ones of a few questions
    # are too often 0.
    freedom = math.fsum(u for _, u, _ in parts) ** 2 / math.fsum(u * u / f for _, u, f in parts)
    if any(sample.is_binary for sample in samples):
        n = 1 / math.fsum(w * w / s.n for s, w in zip(samples, weights, strict=True))
        # The second moment of the questions and the two that are added.
        moment = (n * (n * variance + value**2) + 2) / (n + 2)
        centre = value * n / (n + 2)
        half = _quantile(freedom) * math.sqrt((moment - centre**2) / (n + 2))
        return max(-1.0, min(centre - half, value)), min(1.0, max(centre + half, value))
    if variance <= 0:
        return None, None
    half = _quantile(freedom) * math.sqrt(variance)
    return value - half, value + half


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf(0.975, freedom)) if freedom < 1000 else _Z95
