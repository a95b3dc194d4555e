"""How many questions of each benchmark fit into a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Need", "allocate", "per_task"]

# Of a benchmark, if it has as many: fewer say nothing of it by itself.
LEAST = 20


@dataclass(frozen=True)
class Need:
    """A benchmark to ask.

    Attributes:
        name: the benchmark.
        questions: number of its questions.
        seconds: seconds that a question takes.
        score: the score to expect, from 0 to 1; it decides how uncertain a question is.
    """

    name: str
    questions: int
    seconds: float
    score: float = 0.5


def allocate(needs: Sequence[Need], seconds: float) -> dict[str, int]:
    """Divide a time among benchmarks so that their mean has the smallest variance.

    The numbers of questions are in proportion to the standard deviation of a question's score and
    to 1 / sqrt(seconds a question) (Neyman 1934; with costs Cochran 1977, section 5.5), within
    :data:`LEAST` and all questions of the benchmark.

    Returns:
        Benchmark -> number of questions.

    Raises:
        ValueError: the time does not suffice for :data:`LEAST` questions of each.
    """
    least = {need.name: min(LEAST, need.questions) for need in needs}
    shortest = sum(least[need.name] * need.seconds for need in needs)
    if shortest > seconds:
        raise ValueError(
            f"--minutes: expected at least {math.ceil(shortest / 6) / 10:g} for {LEAST} questions "
            f"of each benchmark, got {seconds / 60:g}"
        )

    def numbers(scale: float) -> dict[str, int]:
        found = {}
        for need in needs:
            score = min(max(need.score, 0.05), 0.95)
            wish = scale * math.sqrt(score * (1 - score) / need.seconds)
            found[need.name] = max(least[need.name], min(need.questions, int(wish)))
        return found

    low, high = 0.0, 1.0
    costs = {need.name: need.seconds for need in needs}

    def fits(scale: float) -> bool:
        return sum(n * costs[name] for name, n in numbers(scale).items()) <= seconds

    everything = {need.name: need.questions for need in needs}
    while fits(high) and numbers(high) != everything:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return everything if fits(high) else numbers(low)


def per_task(number: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Divide the questions of a benchmark among its tasks in proportion to their sizes.

    Args:
        number: questions of the benchmark.
        sizes: task -> number of its questions.

    Returns:
        Task -> questions, at least 1 and at most all; their sum may exceed `number` for many tasks.
    """
    total = sum(sizes.values())
    return {
        task: min(size, max(1, math.floor(number * size / total + 0.5)))
        for task, size in sizes.items()
    }
