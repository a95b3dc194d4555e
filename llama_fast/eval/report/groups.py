"""Scores of groups of tasks, such as MMLU over its 57 subjects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_fast.eval.report.scores import Score, score_of


@dataclass(frozen=True)
class Group:
    """The score of a group.

    Attributes:
        name: the harness's name.
        tasks: its tasks that have results, including those of nested groups.
        questions: number of questions; None if the harness does not report it.
        score: the score of all tasks together, with the group's weights.
    """

    name: str
    tasks: tuple[str, ...]
    questions: int | None
    score: Score


def groups_of(results: Mapping[str, Any], keys: Mapping[str, str] | None = None) -> list[Group]:
    """The groups, in the order of their tasks, outer groups before nested ones.

    Args:
        results: the result of the harness's `evaluate`, or the content of results.json.
        keys: task -> `metric,filter` of its score, which is also that of its group.
    """
    members = results.get("group_subtasks") or {}
    result = []
    for name, row in (results.get("groups") or {}).items():
        tasks = tuple(task for task in _within(name, members) if task in results["results"])
        key = next((keys[task] for task in tasks if task in keys), None) if keys else None
        score = score_of(row, key if key in row else None)
        if score is not None and tasks:
            length = row.get("sample_len")
            result.append(Group(name, tasks, length if isinstance(length, int) else None, score))
    place = {task: at for at, task in enumerate(results["results"])}
    return sorted(result, key=lambda one: (min(place[t] for t in one.tasks), -len(one.tasks)))


def _within(name: str, members: Mapping[str, Any]) -> list[str]:
    """The tasks of a group, including those of nested groups."""
    if not members.get(name):
        return [name]
    return list(dict.fromkeys(task for one in members[name] for task in _within(one, members)))
