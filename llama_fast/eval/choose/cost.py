"""What a question costs: tokens, measured with SmolLM2's tokenizer, and seconds for a model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from llama_fast.eval.harness import HarnessModel

__all__ = ["Cost", "Rates", "costs", "measure_rates", "measured_seconds", "seconds_of"]

LIKELIHOOD, GENERATION = "likelihood", "generation"


class Cost(NamedTuple):
    """A question of a benchmark.

    Attributes:
        tokens: tokens that go through the model, examples included; a beginning that questions
            share counts once.
        kind: "likelihood", or "generation" if the model writes an answer.
    """

    tokens: float
    kind: str


class Rates(NamedTuple):
    """Tokens per second of a model, for each kind of question."""

    likelihood: float
    generation: float


@cache
def costs() -> dict[str, Cost]:
    """Benchmark -> cost of a question, from the published run of the suite."""
    data = json.loads(Path(__file__).with_name("costs.json").read_text(encoding="utf-8"))
    return {name: Cost(*cost) for name, cost in data["benchmarks"].items()}


def seconds_of(benchmark: str, rates: Rates) -> float:
    """Estimate the seconds of a question of a benchmark."""
    cost = costs()[benchmark]
    return cost.tokens / getattr(rates, cost.kind)


def measured_seconds(costs_of_tasks: Mapping[str, Any], tasks: tuple[str, ...]) -> float | None:
    """Seconds a question of a benchmark in a run.

    Args:
        costs_of_tasks: the run's `costs`: task -> tokens, questions and seconds.
        tasks: the benchmark's tasks.

    Returns:
        None if a task is not in the run, or its answers came from the cache.
    """
    if not all(task in costs_of_tasks for task in tasks):
        return None
    seconds = sum(costs_of_tasks[task]["seconds"] for task in tasks)
    questions = sum(costs_of_tasks[task]["questions"] for task in tasks)
    return seconds / questions if questions else None


def measure_rates(lm: HarnessModel) -> Rates:
    """Measure the tokens per second of a model on made-up questions, in a few seconds.

    The questions are as long as usual ones: 32 contexts of 100 tokens with four endings of 10, and
    16 texts of 64 tokens after prompts of 100.
    """
    from llama_fast.eval.engine import Scorer
    from llama_fast.generation.engine import Engine
    from llama_fast.generation.requests import GenerationRequest

    def made_up(length: int, seed: int) -> list[int]:
        size = lm.model.config.vocab_size
        return [(seed * 7919 + at * 104729) % size for at in range(length)]

    room = max(2, min(100, lm.max_length - 80))
    requests = [
        (made_up(room, number // 4), made_up(10, 1000 + number)) for number in range(4 * 32)
    ]
    scorer = Scorer(lm.model, lm.scorer.budget)
    scorer.score(requests[:8])  # what is compiled or allocated once
    before, begin = scorer.work.computed, time.perf_counter()
    scorer.score(requests)
    likelihood = (scorer.work.computed - before) / (time.perf_counter() - begin)
    engine = Engine(lm.model, lm.words, max_batch=lm.batch)
    prompts = [GenerationRequest(made_up(room, seed), max_new_tokens=64) for seed in range(16)]
    begin = time.perf_counter()
    engine.generate(prompts)
    generation = (engine.prefilled + engine.decoded) / (time.perf_counter() - begin)
    return Rates(likelihood, generation)
