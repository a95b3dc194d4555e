"""Intervals of scores: published values, coverage by simulation, and clusters."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from llama_fast.eval.intervals import (
    cluster_errors,
    clustered_stderr,
    interval_of_share,
    mean_interval,
    wilson,
)
from llama_fast.eval.report.scores import score_of
from llama_fast.eval.suite import summarise


def test_wilson_against_published_values() -> None:
    """Newcombe 1998, table I, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [4, 10, 40, 200, 1000])
def test_the_interval_covers_the_truth(n: int) -> None:
    """From the harness's number and standard error, on average over shares."""
    trials = 2000
    generator = np.random.default_rng(n)
    coverages = []
    for p in (0.02, 0.1, 0.25, 0.5, 0.9):
        right = generator.binomial(n, p, trials)
        covered = 0
        for k, times in zip(*np.unique(right, return_counts=True), strict=True):
            share = k / n
            bounds = interval_of_share(share, math.sqrt(share * (1 - share) / (n - 1)), n)
            assert bounds is not None
            covered += times * (bounds[0] <= p <= bounds[1])
        coverages.append(covered / trials)
        # For a single share it may fall short: 0 or 4 right of 4 (12.5 %) leave out 50 %.
        assert coverages[-1] >= 0.85, (n, p)
    assert np.mean(coverages) >= (0.92 if n == 4 else 0.94)


def test_questions_about_one_passage() -> None:
    """Equal answers for a passage carry the information of one question."""
    generator = np.random.default_rng(0)
    clusters = [str(at // 5) for at in range(200)]
    values = np.repeat(generator.random(40) < 0.6, 5).astype(float)
    error = clustered_stderr(list(values), clusters)
    share = values.mean()
    assert error == pytest.approx(math.sqrt(share * (1 - share) / 39))
    alone = clustered_stderr(list(values), [str(at) for at in range(200)])
    assert alone == pytest.approx(values.std(ddof=1) / math.sqrt(200))
    assert clustered_stderr([1.0, 0.0], ["a", "a"]) == "N/A"
    covered = 0
    for _ in range(500):
        values = np.repeat(generator.random(20) < 0.3, 5).astype(float)
        error = clustered_stderr(list(values), clusters[:100])
        assert isinstance(error, float)
        bounds = interval_of_share(values.mean(), error, 100, clusters=20)
        covered += bounds is not None and bounds[0] <= 0.3 <= bounds[1]
    assert covered / 500 >= 0.92


def sample(doc_id: int, passage: str, right: float) -> dict[str, Any]:
    doc = {"passage": passage, "question": str(doc_id)}
    return {"doc_id": doc_id, "doc": doc, "filter": "none", "acc": right}


def test_a_row_of_results_gets_the_errors_of_its_passages() -> None:
    samples = [sample(at, f"passage {at // 2}", float(at // 2 % 2)) for at in range(8)]
    row = {"acc,none": 0.5, "acc_stderr,none": 0.19, "f1,none": 0.3, "f1_stderr,none": 0.1}
    cluster_errors(row, samples)
    assert row["acc_stderr,none"] == pytest.approx(math.sqrt(0.25 / 3)) and row["clusters"] == 4
    assert row["f1_stderr,none"] == 0.1  # no mean over the questions
    score = score_of({**row, "sample_len": 8}, "acc")
    assert score is not None and score.clusters == 4 and score.interval is not None
    low, high = score.interval
    assert low < 15 and high > 85
    # Passages of one question each: nothing changes.
    row = {"acc,none": 0.5, "acc_stderr,none": 0.19}
    cluster_errors(row, [sample(at, f"passage {at}", float(at % 2)) for at in range(8)])
    assert row == {"acc,none": 0.5, "acc_stderr,none": 0.19}


def test_the_mean_of_parts_has_a_width_where_all_are_wrong() -> None:
    low, high = mean_interval([0.0, 0.04], [(0.0, 0.037), (0.016, 0.098)])
    assert low == pytest.approx(0.02 - 0.012) and high == pytest.approx(
        0.02 + math.hypot(0.037, 0.058) / 2
    )
    tasks = ("humaneval_sampled", "pass@1,create_test"), ("mbpp_sampled", "pass_at_1,none")
    results = {
        "results": {task: {key: 0.0, key.replace(",", "_stderr,"): 0.0} for task, key in tasks},
        "n-samples": {task: {"original": 100, "effective": 4} for task, _ in tasks},
    }
    code = next(row for row in summarise(results) if row.column == "Code")
    assert code.value == 0.0 and code.interval is not None
    assert code.interval == pytest.approx((0.0, 100 * wilson(0, 4)[1] / math.sqrt(2)))


@pytest.mark.parametrize("asked", [1, 2, 4])
def test_a_suite_of_many_small_tasks_is_covered(asked: int) -> None:
    """MMLU's 57 tasks of different difficulty and size, with a few questions of each."""
    from llama_fast.eval.suite.subjects import MMLU

    generator = np.random.default_rng(asked)
    sizes = generator.integers(100, 400, len(MMLU))
    truth = generator.uniform(0.1, 0.9, len(MMLU))
    whole = float(sizes @ truth / sizes.sum())
    covered, trials = 0, 300
    for _ in range(trials):
        rows, numbers = {}, {}
        for subject, size, p in zip(MMLU, sizes, truth, strict=True):
            share = generator.binomial(asked, p) / asked
            error = math.sqrt(share * (1 - share) / (asked - 1)) if asked > 1 else "N/A"
            rows[f"mmlu_5shot_{subject}"] = {"acc,none": share, "acc_stderr,none": error}
            numbers[f"mmlu_5shot_{subject}"] = {"original": int(size), "effective": asked}
        found = summarise({"results": rows, "n-samples": numbers})
        interval = next(row for row in found if row.column == "MMLU").interval
        assert interval is not None
        covered += interval[0] <= 100 * whole <= interval[1]
    # 95 % less three standard errors; single questions vary between tasks too, and cover more.
    assert covered / trials >= 0.912


def test_an_interval_that_is_not_known() -> None:
    for share, error in itertools.product((0.3,), (None, 0.0)):
        assert interval_of_share(share, error, 10) is None
    assert interval_of_share(0.0, None, None) is None
