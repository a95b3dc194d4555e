"""Scores of a model on benchmarks while it trains: who measures them is the caller's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_fast.models import LLaMA


@dataclass(frozen=True)
class BenchmarkScore:
    """A line of ``benchmarks.csv``.

    Attributes:
        step: after which the model was scored.
        benchmark: its name.
        questions: how many.
        accuracy: share answered rightly by log-likelihood per character.
        stderr: standard error of ``accuracy``.
        raw_accuracy: the same without length normalisation.
        chance: expected accuracy of guessing.
    """

    step: int
    benchmark: str
    questions: int
    accuracy: float
    stderr: float
    raw_accuracy: float
    chance: float

    def __str__(self) -> str:
        """For a line of output."""
        return (
            f"{self.benchmark} {self.accuracy:.1%} ± {self.stderr:.1%} of {self.questions} "
            f"questions (guessing: {self.chance:.1%})"
        )


# Called with a whole model and the number of steps done, on the first process only. It leaves the
# model as it was, and draws no random numbers.
BenchmarkScorer = Callable[[LLaMA, int], Sequence[BenchmarkScore]]
