"""How questions are divided among benchmarks and tasks."""

from __future__ import annotations

import itertools

import pytest

from llama_fast.eval.choose.plan import LEAST, Need, allocate, per_task


def cost(needs: list[Need], numbers: dict[str, int]) -> float:
    return sum(need.seconds * numbers[need.name] for need in needs)


def variance(needs: list[Need], numbers: dict[str, int]) -> float:
    return sum(need.score * (1 - need.score) / numbers[need.name] for need in needs)


def test_the_time_is_used_and_not_exceeded() -> None:
    needs = [Need("a", 10_000, 0.01), Need("b", 1_000, 0.5), Need("c", 100, 0.02)]
    numbers = allocate(needs, 60.0)
    assert 55 < cost(needs, numbers) <= 60 and numbers["c"] == 100
    assert allocate(needs, 1e6) == {"a": 10_000, "b": 1_000, "c": 100}


def test_no_other_division_of_the_time_is_more_exact() -> None:
    needs = [Need("a", 10_000, 0.05, 0.5), Need("b", 10_000, 0.2, 0.9)]
    numbers = allocate(needs, 60.0)
    best = variance(needs, numbers)
    for a, b in itertools.product(range(LEAST, 1200, 20), range(LEAST, 300, 5)):
        other = {"a": a, "b": b}
        if cost(needs, other) <= cost(needs, numbers):
            assert variance(needs, other) >= 0.98 * best


def test_too_little_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least 0.7 for 20 questions of each"):
        allocate([Need("a", 1000, 1.0), Need("b", 1000, 1.0)], 30.0)


def test_tasks_get_their_share() -> None:
    assert per_task(100, {"a": 300, "b": 600, "c": 100}) == {"a": 30, "b": 60, "c": 10}
    assert per_task(3, dict.fromkeys("abcde", 10)) == dict.fromkeys("abcde", 1)
    assert per_task(50, {"a": 5, "b": 45}) == {"a": 5, "b": 45}
