"""Facts about a run for the page: what a reader asks first, then versions and hashes."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

from llama_fast._format import counted, duration
from llama_fast.eval.report.results import Run

# Labels of metadata keys, in the order in which they are shown; others follow under their keys.
LABELS = {
    "model": "Model",
    "dtype": "dtype",
    "quantization": "Quantization",
    "device": "Device",
    "machine": "Machine",
    "date": "Date",
    "questions": "Questions",
    "seconds": "Time",
    "preset": "Suite",
    "max_length": "Maximum length",
    "truncated": "Contexts cut to the model's length",
    "cached": "Requests from the cache",
    "energy": "Energy",
    "requests": "Requests",
    "tokens": "Tokens",
}
# Keys that are shown elsewhere or are of no use to a reader.
HIDDEN = frozenset(
    {"command", "costs", "earlier_commands", "not_scored", "notes", "chat_template",
     "fewshot_as_multiturn", "summary"}
)  # fmt: skip
# Keys for those who want the very same run again.
TECHNICAL = re.compile(r"versions|model_source|lm_eval_version|.*(?:sha|sha256|hash|revision)")


def facts_of(run: Run) -> tuple[list[list[str]], list[list[str]]]:
    """The facts of a run, and its versions and hashes, as pairs of name and value."""
    found: dict[str, Any] = {**run.metadata, "model": run.name, "questions": _questions(run)}
    found.setdefault("date", run.results.get("date"))
    found["lm_eval_version"] = run.results.get("lm_eval_version")
    if found.get("model_source") == run.name:
        del found["model_source"]
    order = {key: at for at, key in enumerate(LABELS)}
    facts: list[list[str]] = []
    technical: list[list[str]] = []
    for key in sorted(found, key=lambda key: order.get(key, len(order))):
        if key in HIDDEN or found[key] is None:
            continue
        label = LABELS.get(key, key.replace("_", " ").capitalize())
        if key == "lm_eval_version":
            label = "Tasks and metrics"
        (technical if TECHNICAL.fullmatch(key) else facts).append([label, _text(key, found[key])])
    return facts, technical


def num_questions(run: Run, task: str) -> int | None:
    """Number of questions of a task that were asked; None if it is not recorded."""
    n = (run.results.get("n-samples") or {}).get(task)
    return int(n["effective"]) if isinstance(n, dict) and "effective" in n else None


def _questions(run: Run) -> str:
    asked = sum(num_questions(run, task) or 0 for task in run.tasks)
    tasks = len(run.tasks)
    return f"{asked:,} in {counted(tasks, 'task')}"


def _text(key: str, value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key == "seconds" and is_number:
        return duration(value)
    if key == "energy" and isinstance(value, Mapping):
        return _energy(value)
    if key == "date" and is_number:
        when = datetime.datetime.fromtimestamp(value, datetime.timezone.utc)
        return f"{when:%Y-%m-%d %H:%M} UTC"
    if key == "lm_eval_version":
        return f"lm-eval {value}"
    if isinstance(value, int) and is_number:
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _energy(value: Mapping[str, Any]) -> str:
    """Energy as text; a file may have anything in place of a number."""
    units = {"joules_per_1000_tokens": "1,000 tokens", "joules_per_question": "question"}
    numbers = {unit: value.get(key) for key, unit in units.items()}
    shown = [f"{n:,.3g} J per {u}" for u, n in numbers.items() if isinstance(n, (int, float))]
    return f"{', '.join(shown)} ({value.get('source', 'unknown counter')})"
