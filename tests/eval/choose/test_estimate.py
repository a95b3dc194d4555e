"""Estimates of a whole run from some of its questions: SmolLM2's answers to 16,777 questions.

`smollm2_scores.json` has the scores of the published run (`make eval-suite`), by benchmark and
task, and the number of questions of each task's benchmark.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llama_fast.eval.choose.cost import Rates, seconds_of
from llama_fast.eval.choose.estimate import Sample, estimate
from llama_fast.eval.choose.plan import Need, allocate, per_task

Scores = dict[str, list[list[float]]]


@cache
def answers() -> Scores:
    """Benchmark -> the scores of each of its tasks."""
    path = Path(__file__).with_name("smollm2_scores.json")
    return {
        name: [[float(score) for score in task] for task in benchmark["scores"]]
        for name, benchmark in json.loads(path.read_text()).items()
    }


def whole(name: str) -> Sample:
    tasks = answers()[name]
    return Sample(name, tuple(map(tuple, tasks)), tuple(map(len, tasks)))


def drawn(minutes: float, generator: np.random.Generator) -> list[Sample]:
    """What `--minutes` would ask, at the speed of 2 threads of a small processor."""
    rates = Rates(likelihood=2000.0, generation=800.0)
    sizes = {name: [len(task) for task in tasks] for name, tasks in answers().items()}
    needs = [Need(name, sum(of), seconds_of(name, rates)) for name, of in sizes.items()]
    samples = []
    for name, number in allocate(needs, 60 * minutes).items():
        counts = per_task(number, {str(t): size for t, size in enumerate(sizes[name])})
        scores = [
            tuple(generator.permutation(task)[: counts[str(t)]].tolist())
            for t, task in enumerate(answers()[name])
        ]
        samples.append(Sample(name, tuple(scores), tuple(sizes[name])))
    return samples


@pytest.mark.parametrize("minutes", [2.0, 5.0, 10.0])
def test_intervals_cover_the_whole_score(minutes: float) -> None:
    """In at least 90 of 100 subsets."""
    truth = estimate([whole(name) for name in answers()])
    assert truth.low == truth.high == truth.value
    generator = np.random.default_rng(0)
    covered, widths, errors = 0, [], []
    for _ in range(100):
        found = estimate(drawn(minutes, generator))
        covered += found.low <= truth.value <= found.high
        widths.append(found.high - found.low)
        errors.append(found.value - truth.value)
    asked = sum(sample.asked for sample in drawn(minutes, generator))
    print(f"{minutes:g} minutes, {asked} questions: {covered} covered, width {np.mean(widths):.2f}")
    assert covered >= 90
    assert asked < sum(len(task) for tasks in answers().values() for task in tasks)
    # Not by being wide: the errors fill the intervals.
    assert np.std(errors) > np.mean(widths) / 2 / 1.96 / 2
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(100)


def test_more_time_gives_a_narrower_interval() -> None:
    generator = np.random.default_rng(1)
    widths = []
    for minutes in (2, 5, 10):
        found = estimate(drawn(minutes, generator))
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


def test_by_hand() -> None:
    sample = Sample("a", ((1.0, 0.0, 1.0, 1.0), (0.0, 0.0)), (40, 10))
    assert sample.mean() == pytest.approx(0.8 * 0.75 + 0.2 * 0)
    unit = (3 + 2) / (6 + 4) * (5 / 10)
    expected = 0.8**2 * (1 - 4 / 40) * unit / 4 + 0.2**2 * (1 - 2 / 10) * unit / 2
    assert sample.variance() == pytest.approx(expected)
    found = estimate([sample, Sample("b", ((1.0,) * 5,), (5,))])
    assert found.value == pytest.approx(100 * (0.6 + 1) / 2)
    half = 100 * 1.959963984540054 * math.sqrt(expected) / 2
    assert found.high - found.value == pytest.approx(half)


def test_nothing_right_is_not_certain() -> None:
    found = estimate([Sample("a", ((0.0,) * 20,), (500,))])
    assert found.value == found.low == 0 and 5 < found.high < 20


def test_refusals() -> None:
    with pytest.raises(ValueError, match="samples: expected at least one benchmark, got none"):
        estimate([])
    with pytest.raises(ValueError, match="samples: expected questions of every task of a"):
        estimate([Sample("a", ((1.0,), ()), (5, 5))])
