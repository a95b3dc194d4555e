"""95 % confidence intervals of scores, and standard errors of questions that share a passage.

A score that is a share has Wilson's interval (Wilson 1927), which never leaves 0 to 100 % and has a
width where all answers are right, or all are wrong. Where questions are not independent, or count
differently, it is that of the number of independent questions with the same standard error (Korn &
Graubard 1998).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llama_fast.eval.clusters import cluster_of

# 95 % of a normal distribution lies within this many standard deviations.
Z95 = 1.959963984540054


def wilson(share: float, n: float, quantile: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a share of n independent questions; n need not be whole."""
    square = quantile**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = math.sqrt(share * (1 - share) / n + square / (4 * n * n)) * quantile / (1 + square / n)
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def interval_of_share(
    share: float, stderr: float | None, n: float | None, clusters: int | None = None
) -> tuple[float, float] | None:
    """The interval of a score between 0 and 1; None if it is not known.

    Args:
        share: the score.
        stderr: its standard error; None if unknown.
        n: number of questions, used where all are right or all wrong.
        clusters: number of clusters, if questions share passages; at least 2.
    """
    quantile = Z95 if clusters is None else t_quantile(clusters - 1)
    if stderr and 0 < share < 1:
        # The standard error of n independent questions is sqrt(share (1 - share) / (n - 1)).
        return wilson(share, share * (1 - share) / stderr**2 + 1, quantile)
    if share in (0, 1) and n:
        return wilson(share, n if clusters is None else min(n, clusters), quantile)
    return None


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    from scipy import stats

    return float(stats.t.ppf(0.975, freedom))


def mean_interval(
    values: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """The interval of the plain mean of independent scores, from their own (Zou & Donner 2008)."""
    mean = math.fsum(values) / len(values)
    pairs = list(zip(values, intervals, strict=True))
    below = math.sqrt(math.fsum((value - low) ** 2 for value, (low, _) in pairs)) / len(values)
    above = math.sqrt(math.fsum((high - value) ** 2 for value, (_, high) in pairs)) / len(values)
    return mean - below, mean + above


def cluster_errors(row: dict[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    """Replace the standard errors in a row of results by those of clusters, if there are any.

    The number of clusters is added to the row as `clusters`. Scores that are not the mean over the
    questions are left as they are.

    Args:
        row: a task's results, from the harness; changed in place.
        samples: the task's questions, as the harness logs them.
    """
    named = [cluster_of(sample["doc"]) for sample in samples]
    known = {sample["doc_id"]: name for sample, name in zip(samples, named, strict=True)}
    # Questions without a name are alone.
    names = {doc: f"question {doc}" if name is None else name for doc, name in known.items()}
    if len(set(names.values())) == len(names):
        return
    for key in [key for key in row if "_stderr," in key]:
        metric, filter_name = key.split("_stderr,", 1)
        of = [s for s in samples if s["filter"] == filter_name and metric in s]
        values = [sample[metric] for sample in of]
        value = row.get(f"{metric},{filter_name}")
        if not values or not all(isinstance(v, (bool, int, float)) for v in values):
            continue
        if not isinstance(value, (int, float)) or not math.isclose(
            value, math.fsum(values) / len(values), rel_tol=1e-6, abs_tol=1e-9
        ):
            continue
        row[key] = clustered_stderr(values, [names[sample["doc_id"]] for sample in of])
    row["clusters"] = len(set(names.values()))


def clustered_stderr(values: Sequence[float], clusters: Sequence[str]) -> float | str:
    """The standard error of a mean from the sums of clusters; "N/A", as in the harness, for one.

    Liang & Zeger 1986, with the factor C / (C - 1) for C clusters.
    """
    place = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    if len(place) < 2:
        return "N/A"
    numbers = np.asarray(values, dtype=np.float64)
    rest = numbers - numbers.mean()
    sums = np.bincount([place[name] for name in clusters], weights=rest)
    return float(np.sqrt(sums @ sums * len(sums) / (len(sums) - 1)) / len(numbers))
