"""Scores of groups of tasks, such as the one MMLU over its 57 subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_fast.eval.report.scores import Score, score_of


@dataclass(frozen=True)
class Group:
    """A group that was scored.

    Attributes:
        name: the harness's.
        tasks: those in it that have results, also in groups within it.
        questions: how many it is over; None if the harness does not say.
        score: of all its tasks together, as the group itself weighs them.
    """

    name: str
    tasks: tuple[str, ...]
    questions: int | None
    score: Score


def groups_of(results: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> list[Group]:
    """The groups, in the order of their tasks, larger ones before those within them.

    Args:
        results: what the harness's `evaluate` returned, or results.json read back.
        keys: task -> `metric,filter` that is its score; a group has that of its tasks.
    """
    members = results.get("group_subtasks") or {}
    found = []
    for name, row in (results.get("groups") or {}).items():
        tasks = tuple(task for task in _within(name, members) if task in results["results"])
        key = next((keys[task] for task in tasks if task in keys), None) if keys else None
        score = score_of(row, key if key in row else None)
        if score is not None and tasks:
            length = row.get("sample_len")
            found.append(Group(name, tasks, length if isinstance(length, int) else None, score))
    place = {task: at for at, task in enumerate(results["results"])}
    return sorted(found, key=lambda one: (min(place[t] for t in one.tasks), -len(one.tasks)))


def _within(name: str, members: Mapping[str, Any]) -> list[str]:
    """The tasks of a group and of the groups within it."""
    if not members.get(name):
        return [name]
    return list(dict.fromkeys(task for one in members[name] for task in _within(one, members)))
