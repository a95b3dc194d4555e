"""Redundancy of benchmarks: how alike they rank models, and which few predict the mean of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llama_fast.eval.choose.cards import PaperScores, paper_scores

__all__ = ["Prediction", "choose_few", "held_out_errors", "predict_mean", "rank_correlations"]

Floats = npt.NDArray[np.float64]
# Of the ridge regression, in units of the standardised scores' variance: twelve models are few.
RIDGE = 0.1


@dataclass(frozen=True)
class Prediction:
    """How well some benchmarks predict the mean of all.

    Attributes:
        benchmarks: the benchmarks, in the order in which they were chosen.
        error: root mean square of the errors in percent points, each model predicted from the
            others.
        largest: the largest of the errors.
        unaided: root mean square error of predicting the mean of the other models.
    """

    benchmarks: tuple[str, ...]
    error: float
    largest: float
    unaided: float


def rank_correlations(scores: PaperScores | None = None) -> Floats:
    """Spearman's rank correlation of every pair of benchmarks over the models.

    Returns:
        (benchmarks, benchmarks), in the order of `scores.benchmarks`; ties get the mean of their
        ranks.
    """
    table = _table(scores or paper_scores())
    ranks = np.stack([_ranks(column) for column in table.T], axis=1)
    return np.asarray(np.corrcoef(ranks, rowvar=False))


def predict_mean(benchmarks: Sequence[str], scores: PaperScores | None = None) -> Prediction:
    """Predict each model's mean of all benchmarks from some, fitted to the other models.

    Ridge regression on standardised scores. The mean is that of all benchmarks, so that those which
    are chosen are a part of it.

    Args:
        benchmarks: names of the benchmarks to predict from, at least one.
        scores: the models' scores; None: the paper's.

    Raises:
        ValueError: there is no benchmark, or an unknown one.
    """
    scores = scores or paper_scores()
    unknown = [name for name in benchmarks if name not in scores.benchmarks]
    if not benchmarks or unknown:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"benchmarks: expected some of {', '.join(scores.benchmarks)}, got {got}")
    table = _table(scores)
    chosen = table[:, [scores.benchmarks.index(name) for name in benchmarks]]
    mean = table.mean(axis=1)
    models = np.arange(len(mean))
    errors = np.array([_predicted(chosen, mean, models != m, int(m)) - mean[m] for m in models])
    unaided = np.array([mean[models != m].mean() - mean[m] for m in models])
    return Prediction(
        tuple(benchmarks),
        float(np.sqrt(np.mean(errors**2))),
        float(np.abs(errors).max()),
        float(np.sqrt(np.mean(unaided**2))),
    )


def held_out_errors(count: int, scores: PaperScores | None = None) -> list[float]:
    """Root mean square errors of predicting the mean of a model that nothing else depends on.

    For each model, the benchmarks are chosen and the regression is fitted without it.

    Returns:
        The errors in percent points with 1, 2, ..., `count` benchmarks.
    """
    scores = scores or paper_scores()
    errors = []
    for model in scores.models:
        others = tuple(name for name in scores.models if name != model)
        rest = replace(scores, models=others)
        table = _table(replace(scores, models=(*others, model)))
        mean = table.mean(axis=1)
        fitted = np.arange(len(mean)) < len(others)
        row = []
        for step in choose_few(count, rest):
            chosen = table[:, [scores.benchmarks.index(name) for name in step.benchmarks]]
            row.append(_predicted(chosen, mean, fitted, len(others)) - mean[-1])
        errors.append(row)
    means: list[float] = np.sqrt(np.mean(np.square(errors), axis=0)).tolist()
    return means


def choose_few(count: int, scores: PaperScores | None = None) -> list[Prediction]:
    """The benchmarks that predict the mean of all best, one more at each step.

    Greedy: each step adds the benchmark with which the error is smallest. An error is that of a
    model that took no part in the fit, but did take part in the choice, so it is somewhat low.

    Args:
        count: number of steps.
        scores: the models' scores; None: the paper's.
    """
    scores = scores or paper_scores()
    steps: list[Prediction] = []
    for _ in range(min(count, len(scores.benchmarks))):
        before = steps[-1].benchmarks if steps else ()
        rest = [name for name in scores.benchmarks if name not in before]
        candidates = [predict_mean([*before, name], scores) for name in rest]
        steps.append(min(candidates, key=lambda prediction: prediction.error))
    return steps


def _predicted(chosen: Floats, mean: Floats, fitted: npt.NDArray[np.bool_], model: int) -> float:
    known, wanted = chosen[fitted], mean[fitted]
    middle, spread = known.mean(axis=0), known.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    x = (known - middle) / spread
    gram = x.T @ x + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (wanted - wanted.mean()))
    return float(wanted.mean() + (chosen[model] - middle) / spread @ weights)


def _table(scores: PaperScores) -> Floats:
    return np.array([scores.scores[model] for model in scores.models])


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values get the mean of their ranks."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    ranks: Floats = below + (equal + 1) / 2
    return ranks
