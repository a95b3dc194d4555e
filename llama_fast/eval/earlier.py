"""Handles results of earlier runs in an output folder: keeps them or moves them aside."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llama_fast.eval.limits import Choice, ids_of
from llama_fast.eval.report import conditions, read_run
from llama_fast.eval.report.conditions import shorten
from llama_fast.eval.report.results import RESULTS

# Metadata on which all scores of a run depend -> name in messages.
SETTINGS = {"model_sha256": "model", **conditions.SETTINGS}


def take_over(
    out: Path,
    facts: Mapping[str, Any],
    shots: Mapping[str, int],
    questions: Mapping[str, int],
    chosen: Mapping[str, Choice | None],
) -> tuple[dict[str, Any], str | None]:
    """Keep the results in a folder if a new run can be added to them, else move them aside.

    A new run can be added if all of :data:`SETTINGS` and the suite are the same, and tasks in both
    runs have the same number of examples and the same questions. Other results are moved to
    ``earlier-N`` in the folder.

    Args:
        out: the folder; it may not exist yet.
        facts: metadata of the new run.
        shots: task of the new run -> number of examples.
        questions: task of the new run -> number of questions; 0 if unknown.
        chosen: task of the new run -> which questions; None for all.

    Returns:
        The metadata of the kept runs (empty if there are none), and a line of text on results that
        were moved, or None.

    Raises:
        OSError: a file cannot be moved.
    """
    if not (out / RESULTS).exists():
        return {}, None
    try:
        run = read_run(out / RESULTS)
    except ValueError:
        return {}, f"a damaged {RESULTS} was there: moved to {_move_aside(out)}"
    other = _difference(run.results, run.metadata, facts, shots, questions, chosen)
    if other is None:
        return run.metadata, None
    return {}, f"results of another {other} were there: moved to {_move_aside(out)}"


def joined(
    facts: Mapping[str, Any], earlier: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
    """The metadata of a run merged with that of earlier runs in the folder.

    Args:
        facts: metadata of the run.
        earlier: the metadata that :func:`take_over` returned.
        names: tasks and groups of the run; their entries of earlier runs are dropped.
    """
    if not earlier:
        return dict(facts)
    not_scored = {k: v for k, v in (earlier.get("not_scored") or {}).items() if k not in names}
    notes = [text for text in (earlier.get("notes"), facts.get("notes")) if text]
    lines = dict.fromkeys(line for text in notes for line in text.split("; "))
    commands = [*(earlier.get("earlier_commands") or []), earlier.get("command")]
    before = [c for c in dict.fromkeys(commands) if c not in (None, facts.get("command"))]
    return {
        **facts,
        "preset": facts.get("preset") or earlier.get("preset"),
        "energy": facts.get("energy") or earlier.get("energy"),
        "not_scored": {**not_scored, **(facts.get("not_scored") or {})},
        "notes": "; ".join(lines) or None,
        "earlier_commands": before or None,
    }


def _difference(
    results: Mapping[str, Any],
    earlier: Mapping[str, Any],
    facts: Mapping[str, Any],
    shots: Mapping[str, int],
    questions: Mapping[str, int],
    chosen: Mapping[str, Choice | None],
) -> str | None:
    """The first setting in which the runs differ, with both values, or None."""
    for key, name in SETTINGS.items():
        was, now = earlier.get(key, "unknown"), facts.get(key)
        if was != now:
            return f"{name} ({shorten(was)}, now {shorten(now)})"
    was, now = earlier.get("preset"), facts.get("preset")
    if was and now and was != now:
        return f"suite ({was}, now {now})"
    for task in shots.keys() & results["results"].keys():
        was, now = (results.get("n-shot") or {}).get(task), shots[task]
        if was != now:
            return f"number of examples of {task} ({shorten(was)}, now {now})"
        was = ((results.get("n-samples") or {}).get(task) or {}).get("effective")
        now = questions[task]
        if now and was != now:
            return f"number of questions of {task} ({shorten(was)}, now {now:,})"
        choice = chosen.get(task)
        if choice is not None and ids_of(results, task) != list(choice.ids):
            return f"choice of questions of {task}"
    return None


def _move_aside(out: Path) -> str:
    """Move the files of a run, except its cache, to a new folder; return the folder's name."""
    number = 1
    while os.path.lexists(out / f"earlier-{number}"):
        number += 1
    folder = out / f"earlier-{number}"
    folder.mkdir()
    # results.json last: if the process is killed before, the next run moves the rest.
    for path in [*sorted(out.glob("samples_*.jsonl")), out / "report.html", out / RESULTS]:
        if path.exists():
            path.rename(folder / path.name)
    return folder.name
