"""A run of the benchmarks for a purpose within a time: its limits before, its estimate after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llama_fast.eval.choose.cards import cards
from llama_fast.eval.choose.cost import Rates, costs, measured_seconds, seconds_of
from llama_fast.eval.choose.estimate import Estimate, Sample, estimate
from llama_fast.eval.choose.plan import Need, allocate, per_task
from llama_fast.eval.choose.purposes import Purpose
from llama_fast.eval.limits import Limits
from llama_fast.eval.report.questions import read_questions
from llama_fast.eval.report.scores import score_of
from llama_fast.eval.suite import Part, suite

if TYPE_CHECKING:
    from llama_fast.eval.report.results import Run

__all__ = ["PRESET", "estimate_run", "limits_for", "needs_of", "parts_of", "samples_of"]

PRESET = "llama2-paper"


def parts_of(purpose: Purpose) -> list[Part]:
    """The benchmarks of a purpose, in its order."""
    parts = {part.name: part for part in suite(PRESET).parts}
    return [parts[name] for name in purpose.parts]


def needs_of(
    parts: Sequence[Part], rates: Rates, sizes: Mapping[str, int] | None = None
) -> list[Need]:
    """What each benchmark needs.

    Args:
        parts: the benchmarks.
        rates: the model's tokens per second.
        sizes: benchmark -> number of questions; None: those of the cards.
    """
    known = cards()
    needs = []
    for part in parts:
        questions = known[part.name].questions if sizes is None else sizes[part.name]
        needs.append(Need(part.name, questions, seconds_of(part.name, rates)))
    return needs


def limits_for(
    purpose: Purpose, minutes: float, rates: Rates, tasks: Mapping[str, Any], seed: int = 0
) -> Limits:
    """The number of questions of each task that fit into a time.

    Args:
        purpose: the purpose.
        minutes: the time.
        rates: the model's tokens per second.
        tasks: the loaded tasks of the purpose; those that are missing take no time.
        seed: seed of the draw of the questions.

    Raises:
        ValueError: the time is too short.
    """
    sizes: dict[str, dict[str, int]] = {}
    for part in parts_of(purpose):
        loaded = {task: len(tasks[task].eval_docs) for task in part.tasks if task in tasks}
        if loaded:
            sizes[part.name] = loaded
    parts = [part for part in parts_of(purpose) if part.name in sizes]
    unknown = [part for part in parts if part.name not in costs()]
    totals = {name: sum(of_tasks.values()) for name, of_tasks in sizes.items()}
    known = [part for part in parts if part.name in costs()]
    numbers = allocate(needs_of(known, rates, totals), 60 * minutes) if known else {}
    numbers |= {part.name: min(100, totals[part.name]) for part in unknown}
    patterns = [
        item for part in parts for item in per_task(numbers[part.name], sizes[part.name]).items()
    ]
    return Limits(None, tuple(patterns), seed=seed)


def samples_of(run: Run, parts: Sequence[Part]) -> list[Sample]:
    """The scores of a run's questions, by benchmark; benchmarks without scores are left out."""
    found = []
    sizes = run.results.get("n-samples") or {}
    for part in parts:
        scores: list[tuple[float, ...]] = []
        populations = []
        for task in part.tasks:
            score = score_of(run.results["results"].get(task, {}), part.metric)
            if score is None:
                continue
            of_part = replace(score, scale=part.scale, percent=True)  # scores from 0 to 1
            values = [question.score for question in read_questions(run, task, of_part)]
            known = [value for value in values if value is not None]
            if known:
                scores.append(tuple(min(1.0, max(0.0, value)) for value in known))
                asked = sizes.get(task) or {}
                populations.append(int(asked.get("original") or len(known)))
        if scores:
            found.append(Sample(part.name, tuple(scores), tuple(populations)))
    return found


def estimate_run(run: Run, purpose: Purpose) -> Estimate | None:
    """The mean of a purpose's benchmarks on all their questions; None without any score."""
    samples = samples_of(run, [part for part in parts_of(purpose) if part.name in cards()])
    return estimate(samples) if samples else None


def seconds_in(run: Run, part: Part) -> float | None:
    """Seconds a question of a benchmark in a run; None if they were not measured."""
    return measured_seconds(run.metadata.get("costs") or {}, part.tasks)
