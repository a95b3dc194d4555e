"""The paired test and its interval: exact cases, coverage and false positives by simulation."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
from scipy import stats

from llama_fast.eval.report.paired import Difference, Sample, difference, sign_flip_test

Array = np.ndarray


def binary(n: int, gained: int, lost: int) -> Sample:
    b = [1.0] * gained + [0.0] * (n - gained)
    a = [0.0] * gained + [1.0] * lost + [0.0] * (n - gained - lost)
    return Sample.of(a, b)


@lru_cache(None)
def of_counts(n: int, gained: int, lost: int) -> Difference:
    return difference([binary(n, gained, lost)], [1.0])


def covers(found: Difference, truth: float) -> bool:
    assert found.low is not None and found.high is not None
    return found.low - 1e-12 <= truth <= found.high + 1e-12


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (1, 0), (5, 0), (6, 0), (3, 9), (40, 61)])
def test_scores_of_0_and_1_give_mcnemars_exact_test(gained: int, lost: int) -> None:
    found = of_counts(gained + lost + 20, gained, lost)
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue
    assert found.p == pytest.approx(expected)
    assert found.value == pytest.approx((gained - lost) / (gained + lost + 20))


def test_one_question_has_no_interval() -> None:
    found = difference([Sample.of([0], [1])], [1.0])
    assert (found.value, found.low, found.high, found.p) == (1.0, None, None, 1.0)


def test_equal_runs_do_not_differ() -> None:
    found = of_counts(50, 0, 0)
    assert (found.value, found.p) == (0.0, 1.0)
    # Bonett & Price: sqrt(2) / 52 is the standard error with the two questions that are added.
    assert found.high == pytest.approx(stats.t.ppf(0.975, 49) * np.sqrt(2) / 52)
    assert found.low == pytest.approx(-found.high)


def test_every_assignment_of_signs_is_counted_and_drawn() -> None:
    sums = np.array([0.3, -0.1, 0.25, 0.4, 0.05])
    every = [abs(np.dot(signs, sums)) for signs in itertools.product([-1, 1], repeat=5)]
    exact = np.mean([value >= sums.sum() - 1e-12 for value in every])
    assert sign_flip_test(sums) == pytest.approx(exact)
    many = np.concatenate([sums, np.linspace(-0.2, 0.3, 15)])
    signs = np.random.default_rng(5).choice([-1.0, 1.0], size=(200_000, 20))
    expected = np.mean(np.abs(signs @ np.abs(many)) >= many.sum())
    # Five standard errors of a share of 20,000 draws.
    error = 5 * np.sqrt(expected / 20_000)
    assert sign_flip_test(many, 20_000, seed=1) == pytest.approx(expected, abs=error)


def test_other_scores_have_the_t_interval() -> None:
    values = np.array([0.2, -0.1, 0.35, 0.0, 0.15])
    found = difference([Sample.of([0.5] * 5, list(0.5 + values))], [1.0])
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    same = difference([Sample.of([0.25] * 3, [0.5] * 3)], [1.0])
    assert (same.low, same.high, same.p) == (None, None, 0.25)


# Shares of right answers, and how often B answers as A does.
SHARES = (0.02, 0.1, 0.3, 0.5, 0.9)
SAME = (0.9, 0.5, 0.0)


def answers(
    generator: np.random.Generator, shape: tuple[int, int], p: float, more: float, same: float
) -> tuple[Array, Array]:
    """Right answers of A with probability p, and of B with p + more, related by `same`."""
    of_a = generator.random(shape)
    of_b = np.where(generator.random(shape) < same, of_a, generator.random(shape))
    return of_a < p, of_b < p + more


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30, 100, 300, 1000])
def test_the_interval_covers_the_truth_and_p_is_rarely_small_by_chance(n: int) -> None:
    trials = 1000
    generator = np.random.default_rng(n)
    for p, more, same in itertools.product(SHARES, (0.0, 0.05), SAME):
        a, b = answers(generator, (trials, n), p, more, same)
        gained, lost = (b & ~a).sum(axis=1), (a & ~b).sum(axis=1)
        found = [of_counts(n, int(g), int(x)) for g, x in zip(gained, lost, strict=True)]
        coverage = np.mean([covers(one, more) for one in found])
        # 95 % less three standard errors of a share of 1,000 trials.
        assert coverage >= 0.929, (p, more, same)
        if more == 0:
            assert np.mean([one.p < 0.05 for one in found]) <= 0.07, (p, same)


@pytest.mark.parametrize("sizes", [(1,), (2,), (4,), (1, 2, 4)], ids=str)
def test_many_small_tasks_without_a_difference(sizes: tuple[int, ...]) -> None:
    """57 tasks: both averages over them are significant in at most 5 % of trials."""
    trials, tasks = 250, 57
    generator = np.random.default_rng(sum(sizes))
    numbers = [sizes[at % len(sizes)] for at in range(tasks)]
    total = sum(numbers)
    by_questions = [n / total for n in numbers]
    for p, same in ((0.02, 0.5), (0.25, 0.5), (0.9, 0.5)):
        a, b = answers(generator, (trials, total), p, 0.0, same)
        small, covered = [], []
        for one_a, one_b in zip(a.astype(float), b.astype(float), strict=True):
            ends = np.cumsum(numbers)[:-1]
            pairs = zip(np.split(one_a, ends), np.split(one_b, ends), strict=True)
            samples = [Sample.of(list(x), list(y)) for x, y in pairs]
            found = [
                difference(samples, weights, flips=500)
                for weights in (by_questions, [1 / tasks] * tasks)
            ]
            small.append([one.p < 0.05 for one in found])
            covered.append([covers(one, 0.0) for one in found])
        # 5 % plus three standard errors of a share of 250 trials, and the reverse.
        assert (np.mean(small, axis=0) <= 0.092).all(), (p, same)
        assert (np.mean(covered, axis=0) >= 0.908).all(), (p, same)


def test_a_small_task_beside_a_large_one() -> None:
    """The mean of tasks is as uncertain as its smallest task, with few degrees of freedom."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        samples = []
        for n in (1000, 3, 3):
            a, b = answers(generator, (1, n), 0.5, 0.0, 0.3)
            samples.append(Sample.of(list(a[0].astype(float)), list(b[0].astype(float))))
        covered.append(covers(difference(samples, [1 / 3] * 3, flips=10), 0.0))
    assert np.mean(covered) >= 0.912


def test_questions_of_a_passage_are_one_cluster() -> None:
    """30 passages of 8 questions that are won or lost together, without a true difference."""
    generator = np.random.default_rng(3)
    clusters = list(np.repeat(np.arange(30), 8))
    right, wrong, covered = [], [], []
    for _ in range(400):
        won = np.repeat(generator.choice([-1, 0, 1], size=30), 8)
        b, a = (won > 0).astype(float), (won < 0).astype(float)
        found = difference([Sample.of(list(a), list(b), clusters)], [1.0])
        right.append(found.p < 0.05)
        covered.append(covers(found, 0.0))
        wrong.append(difference([Sample.of(list(a), list(b))], [1.0]).p < 0.05)
    assert np.mean(right) <= 0.083 and np.mean(covered) >= 0.917
    assert np.mean(wrong) > 0.3  # as if the questions were independent


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="expected at least one question"):
        Sample.of([], [])
    with pytest.raises(ValueError, match="flips: expected a number >= 1, got 0"):
        difference([binary(3, 1, 0)], [1.0], flips=0)
    with pytest.raises(ValueError, match="samples: expected one weight each, got 1, 2"):
        difference([binary(3, 1, 0)], [0.5, 0.5])
