"""Columns and metrics of a run's tasks in its preset."""

from __future__ import annotations

from functools import lru_cache

from llama_fast.eval.report.results import Run
from llama_fast.eval.suite import Score, suite, summarise


def preset_of(run: Run) -> str | None:
    """The preset in the run's metadata, or None."""
    preset = run.metadata.get("preset")
    return None if preset is None else str(preset)


def metric_of(run: Run, task: str) -> str | None:
    """`metric,filter` of the task's score in the run's preset, or None."""
    preset = preset_of(run)
    key = None if preset is None else _tasks(preset).get(task, (None, ""))[0]
    # The task may have been run with other metrics.
    return key if key in run.results["results"][task] else None


def column_of(run: Run, task: str) -> str | None:
    """Name of the suite's column with the task, or None."""
    preset = preset_of(run)
    return None if preset is None else _tasks(preset).get(task, (None, None))[1]


def columns_of(run: Run) -> list[Score]:
    """The suite's columns for the run; empty without a preset."""
    preset = preset_of(run)
    return [] if preset is None else summarise(run.results, preset)


def metric_keys(preset: str) -> dict[str, str]:
    """Task -> `metric,filter` of its score in a preset."""
    return {task: key for task, (key, _) in _tasks(preset).items()}


@lru_cache
def _tasks(preset: str) -> dict[str, tuple[str, str]]:
    return {
        task: (part.metric, column.name)
        for column in suite(preset).columns
        for part in column.parts
        for task in part.tasks
    }
