"""Results that a folder holds of earlier runs: they stay beside a new run's, or are moved aside."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llama_fast.eval.report import read_run
from llama_fast.eval.report.results import RESULTS

# Facts of a run that all its scores follow from -> what they are called.
SETTINGS = {
    "model_sha256": "model",
    "tokenizer_sha256": "tokenizer",
    "dtype": "dtype",
    "max_length": "max_length",
    "fewshot_as_multiturn": "chat",
    "chat_template": "chat template",
    "system_instruction": "system",
}


def take_over(
    out: Path, facts: Mapping[str, Any], shots: Mapping[str, int], questions: Mapping[str, int]
) -> tuple[dict[str, Any], str | None]:
    """Keep the results in a folder if those of a new run may stand beside them, else move them.

    They may if all of :data:`SETTINGS` are the same, the suites do not differ, and tasks that both
    ask have the same number of examples and of questions. Others go to ``earlier-N`` in the folder.

    Args:
        out: the folder; it need not be there.
        facts: what the new run writes as metadata.
        shots: task of the new run -> examples before each question.
        questions: task of the new run -> how many are asked; 0 if that is not known.

    Returns:
        The metadata of the runs that are kept, empty if there are none; and one line on results
        that were moved, None if none were.

    Raises:
        OSError: a file can't be moved.
    """
    if not (out / RESULTS).exists():
        return {}, None
    try:
        run = read_run(out / RESULTS)
    except ValueError:
        return {}, f"a damaged {RESULTS} was there: moved to {_move_aside(out)}"
    other = _difference(run.results, run.metadata, facts, shots, questions)
    if other is None:
        return run.metadata, None
    return {}, f"results of another {other} were there: moved to {_move_aside(out)}"


def joined(
    facts: Mapping[str, Any], earlier: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
    """Metadata of a run together with what still holds of the runs before it in the folder.

    Args:
        facts: of the run.
        earlier: what :func:`take_over` returned.
        names: tasks and groups of the run, of which it says itself whether they are scored.
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
) -> str | None:
    """The first setting by which the scores are not of one kind, with both values; None: none."""
    for key, name in SETTINGS.items():
        was, now = earlier.get(key, "unknown"), facts.get(key)
        if was != now:
            return f"{name} ({_short(was)}, now {_short(now)})"
    was, now = earlier.get("preset"), facts.get("preset")
    if was and now and was != now:
        return f"suite ({was}, now {now})"
    for task in shots.keys() & results["results"].keys():
        was, now = (results.get("n-shot") or {}).get(task), shots[task]
        if was != now:
            return f"number of examples of {task} ({_short(was)}, now {now})"
        was = ((results.get("n-samples") or {}).get(task) or {}).get("effective")
        now = questions[task]
        if now and was != now:
            return f"number of questions of {task} ({_short(was)}, now {now:,})"
    return None


def _short(value: Any) -> str:
    return "none" if value is None else " ".join(str(value).split())[:20]


def _move_aside(out: Path) -> str:
    """Moves what a run wrote, other than its cache, to a new folder; gives the folder's name."""
    number = 1
    while os.path.lexists(out / f"earlier-{number}"):
        number += 1
    folder = out / f"earlier-{number}"
    folder.mkdir()
    # The results last: a kill in between leaves them to be moved by the next run.
    for path in [*sorted(out.glob("samples_*.jsonl")), out / "report.html", out / RESULTS]:
        if path.exists():
            path.rename(folder / path.name)
    return folder.name
