"""Rank correlations and predictions, against other implementations and made-up scores."""

from __future__ import annotations

import numpy as np
import pytest

from llama_fast.eval.choose.cards import PaperScores, paper_scores
from llama_fast.eval.choose.redundancy import (
    choose_few,
    held_out_errors,
    predict_mean,
    rank_correlations,
)


def made_up(table: np.ndarray) -> PaperScores:
    models = tuple(f"m{number}" for number in range(len(table)))
    names = tuple(f"b{number}" for number in range(table.shape[1]))
    rows = {model: tuple(row.tolist()) for model, row in zip(models, table, strict=True)}
    return PaperScores("made up", names, models, rows)


def test_correlations_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    scores = paper_scores()
    table = np.array([scores.scores[model] for model in scores.models])
    expected = stats.spearmanr(table).statistic
    np.testing.assert_allclose(rank_correlations(), expected, atol=1e-12)


def test_a_benchmark_that_is_the_mean_predicts_it() -> None:
    """Two benchmarks that move together and one that does not: one of the two is chosen first."""
    generator = np.random.default_rng(0)
    ability = generator.normal(50, 15, 12)
    table = np.stack([ability, ability + generator.normal(0, 0.1, 12), generator.normal(50, 1, 12)])
    scores = made_up(table.T)
    first, second, _ = choose_few(3, scores)
    assert first.benchmarks[0] in ("b0", "b1") and first.error < 1.5 < first.unaided
    assert second.error < first.error
    assert first == predict_mean(first.benchmarks, scores)
    assert first.largest >= first.error


def test_noise_predicts_nothing() -> None:
    table = np.random.default_rng(1).normal(50, 10, (12, 20))
    errors = held_out_errors(3, made_up(table))
    unaided = predict_mean(["b0"], made_up(table)).unaided
    assert min(errors) > 0.6 * unaided


def test_choosing_without_the_model_is_no_better_than_with_it() -> None:
    with_model = [step.error for step in choose_few(5)]
    without = held_out_errors(5)
    assert all(a <= b for a, b in zip(with_model, without, strict=True))
    assert without[0] < choose_few(1)[0].unaided / 2 and without[4] < without[0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"benchmarks: expected some of HumanEval, .*got none"):
        predict_mean([])
    with pytest.raises(ValueError, match="got 'MLU'"):
        predict_mean(["MLU"])
