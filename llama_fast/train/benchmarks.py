"""Types of benchmark scores during training; the caller of the run provides the scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llama_fast.models import LLaMA


@dataclass(frozen=True)
class BenchmarkScore:
    """A line of ``benchmarks.csv``.

    Attributes:
        step: number of training steps done.
        benchmark: name of the benchmark.
        questions: number of questions.
        accuracy: fraction of correct answers by log-likelihood per character, from 0 to 1.
        stderr: standard error of ``accuracy``.
        raw_accuracy: fraction of correct answers by log-likelihood.
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
        """Text for a log line."""
        return (
            f"{self.benchmark} {self.accuracy:.1%} ± {self.stderr:.1%} of {self.questions} "
            f"questions (±: standard error; guessing: {self.chance:.1%})"
        )


# Called with the whole model and the number of steps done, on rank 0 only. It must not change the
# model or torch's random state.
BenchmarkScorer = Callable[[LLaMA, int], Sequence[BenchmarkScore]]
