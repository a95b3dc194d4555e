"""Lists the conditions in which two runs differ, such as dtype, maximum length and questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llama_fast.eval.report.results import Run

# Metadata on which all scores of a model depend -> name in messages.
SETTINGS = {
    "tokenizer_sha256": "tokenizer",
    "dtype": "dtype",
    "max_length": "max_length",
    "fewshot_as_multiturn": "chat",
    "chat_template": "chat template",
    "system_instruction": "system",
}
# Further metadata that is compared between runs.
FURTHER = {
    "quantization": "quantization",
    "preset": "preset",
    "lm_eval_version": "version of lm-eval",
}
# Characters of a value that are shown: of a hash, and of a text such as a chat template.
LONGEST = 20
# Tasks that are named for a condition that is set for each.
MOST_TASKS = 3
_UNKNOWN = "not recorded"


def differing_conditions(a: Run, b: Run) -> str | None:
    """What differs between two runs besides the model, in one line; None if nothing does.

    Args:
        a, b: the runs, also those that lm-eval wrote. Settings that neither run recorded are left
            out; one that only one run recorded is "not recorded" in the other, unless it is none.
    """
    parts = []
    for key, name in {**SETTINGS, **FURTHER}.items():
        of_a, of_b = _setting(a, key), _setting(b, key)
        is_recorded = (of_a, of_b) not in ((None, _UNKNOWN), (_UNKNOWN, None))
        if of_a != of_b and is_recorded:
            texts = shorten(of_a), shorten(of_b)
            same = texts[0] == texts[1]
            parts.append(name if same else f"{name} (A {texts[0]}, B {texts[1]})")
    common = [task for task in a.tasks if task in b.tasks]
    for name, value in PER_TASK.items():
        text = _by_task(value, a, b, common)
        if text:
            parts.append(f"{name} ({text})")
    return f"the runs differ in {'; '.join(parts)}" if parts else None


def shorten(value: Any) -> str:
    """`value` in at most :data:`LONGEST` characters, on one line."""
    return "none" if value is None else " ".join(str(value).split())[:LONGEST]


def _setting(run: Run, key: str) -> Any:
    """A setting in the run's metadata, else where lm-eval writes it."""
    if key in run.metadata:
        return run.metadata[key]
    config = run.results.get("config")
    if isinstance(config, Mapping):
        if key == "dtype" and config.get("model_dtype"):
            return str(config["model_dtype"]).removeprefix("torch.")
        if key == "max_length" and config.get("max_length"):
            return config["max_length"]
    return run.results.get(key, None if key == "preset" else _UNKNOWN)


def _examples(run: Run, task: str) -> Any:
    return (run.results.get("n-shot") or {}).get(task)


def _questions(run: Run, task: str) -> Any:
    return ((run.results.get("n-samples") or {}).get(task) or {}).get("effective")


def _choice(run: Run, task: str) -> Any:
    """How the questions were chosen; None for all of them."""
    drawn = (run.results.get("drawn") or {}).get(task)
    asked = (run.results.get("n-samples") or {}).get(task) or {}
    if isinstance(drawn, Mapping):
        seed = drawn.get("seed")
        return drawn.get("how") if seed is None else f"{drawn.get('how')} with seed {seed}"
    return "all" if asked.get("effective") == asked.get("original") else "first"


def _cut(run: Run, task: str) -> Any:
    """Number of contexts that were cut to the maximum length; None if it is not recorded."""
    return (run.results.get("truncated") or {}).get(task)


def _version(run: Run, task: str) -> Any:
    return (run.results.get("versions") or {}).get(task)


def _generation(run: Run, task: str) -> Any:
    return ((run.results.get("configs") or {}).get(task) or {}).get("generation_kwargs")


PER_TASK: dict[str, Callable[[Run, str], Any]] = {
    "number of examples": _examples,
    "number of questions": _questions,
    "choice of questions": _choice,
    "cut contexts": _cut,
    "version of the task": _version,
    "generation settings": _generation,
}


def _by_task(value: Callable[[Run, str], Any], a: Run, b: Run, tasks: Sequence[str]) -> str:
    found = [(task, value(a, task), value(b, task)) for task in tasks]
    other = [row for row in found if None not in row[1:] and row[1] != row[2]]
    texts = [_pair(*row) for row in other[:MOST_TASKS]]
    if len(other) > MOST_TASKS:
        texts.append(f"and {len(other) - MOST_TASKS} more tasks")
    return "; ".join(texts)


def _pair(task: str, of_a: Any, of_b: Any) -> str:
    texts = shorten(of_a), shorten(of_b)
    return task if texts[0] == texts[1] else f"{task}: A {texts[0]}, B {texts[1]}"
