"""Runs an evaluation task by task and writes each task's results when it is done."""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_fast._lock import hold
from llama_fast._out_of_memory import is_out_of_memory
from llama_fast.eval.earlier import joined, take_over
from llama_fast.eval.energy import EvaluationEnergy, TaskEnergy
from llama_fast.eval.group_scores import add_groups
from llama_fast.eval.harness import HarnessModel
from llama_fast.eval.intervals import cluster_errors
from llama_fast.eval.limits import Choice, Limits
from llama_fast.eval.report import write_run
from llama_fast.eval.report.compare import join_names
from llama_fast.eval.report.scores import score_of
from llama_fast.eval.report.table import LiveTable
from llama_fast.eval.request_cache import CacheError, vocabulary_of
from llama_fast.eval.scenarios import SCENARIOS, scenario_groups, scenario_tasks
from llama_fast.eval.suite import load_tasks
from llama_fast.eval.suite.loading import LoadedTasks

log = logging.getLogger("llama_fast")


@dataclass
class Outcome:
    """The outcome of an evaluation.

    Attributes:
        results: results as `lm_eval.evaluator.evaluate` returns them, without samples.
        not_scored: task -> why it was not scored.
        failed: the tasks in `not_scored` whose own code raised an error.
        energy: the energy of the tasks.
        notes: lines of text, on unusual data of tasks and on earlier results that were moved.
    """

    results: dict[str, Any]
    not_scored: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    energy: EvaluationEnergy | None = None
    notes: list[str] = field(default_factory=list)


def load(names: Sequence[str], data_dir: Path | None, **options: Any) -> LoadedTasks:
    """Load tasks by name: tasks of presets and of the harness, and application scenarios.

    Args:
        names: names of presets, tasks, groups and tags; scenarios begin with "scenario_".
        data_dir: folder of mirrored data. None: download from the hub, which of the scenarios has
            question answering only.
        **options: see :func:`llama_fast.eval.suite.load_tasks`.

    Raises:
        ValueError: a name is unknown.
        MissingDataError: data is missing, or a scenario needs `data_dir`.
    """
    ours = [name for name in names if name.startswith("scenario_")]
    loaded = load_tasks([n for n in names if n not in ours], data_dir=data_dir, **options)
    if ours:
        tasks = scenario_tasks(data_dir, ours, num_fewshot=options.get("num_fewshot"))
        loaded["tasks"] |= tasks
        groups = scenario_groups(tasks)
        loaded["groups"] |= groups
        loaded["group_map"] |= {name: list(SCENARIOS[name].tasks) for name in groups}
    return loaded


def evaluate_tasks(
    lm: HarnessModel,
    loaded: LoadedTasks,
    out: Path,
    *,
    limits: Limits | None = None,
    metadata: Mapping[str, Any] | None = None,
    chat: bool = False,
    system: str | None = None,
    keys: Mapping[str, str] | None = None,
    bootstrap_iters: int = 1000,
) -> Outcome:
    """Evaluate all tasks and write results and samples to a folder.

    A task whose own code fails is skipped and reported. The run ends if answers or results cannot
    be stored (full disk) or memory runs out. In any case finished tasks stay in the folder, and
    answers stay in the model's request cache. Existing results in the folder are kept if model and
    settings are the same, else moved aside; see :mod:`llama_fast.eval.earlier`.

    Args:
        lm: the model to evaluate.
        loaded: the tasks, from :func:`load`.
        out: folder for results.json and samples_<task>.jsonl.
        limits: number of questions per task and how they are chosen; None for all.
        metadata: facts for the report, see :func:`llama_fast.eval.report.write_run`.
        chat: whether to apply the model's chat template to prompts.
        system: system instruction for each prompt.
        keys: task -> `metric,filter` to show instead of the default.
        bootstrap_iters: number of bootstrap samples for standard errors that have no formula.

    Raises:
        OSError: a file cannot be written.
    """
    from lm_eval.evaluator import evaluate

    limits, keys = limits or Limits(), keys or {}
    tasks, notes = loaded["tasks"], dict(loaded["notes"])
    limits.check(list(tasks))
    chosen = {name: _chosen(name, task, limits) for name, task in tasks.items()}
    counts = {name: _questions(task, chosen[name]) for name, task in tasks.items()}
    facts = {
        **(metadata or {}),
        "model_sha256": lm.model_hash,
        "tokenizer_sha256": vocabulary_of(lm.words),
        "dtype": str(lm.model.head_weight.dtype).removeprefix("torch."),
        "quantization": getattr(lm.model, "quantization", None),
        "device": str(lm.model.head_weight.device),
        "date": time.time(),
        "max_length": lm.max_length,
        "fewshot_as_multiturn": chat,
        "chat_template": lm.chat_template(chat),
        "system_instruction": system,
    }
    hold(out)
    shots = {name: task.config.num_fewshot or 0 for name, task in tasks.items()}
    earlier, moved = take_over(out, facts, shots, counts, chosen)
    own = {*tasks, *loaded["groups"]}
    folder_notes = [] if moved is None else [moved]
    outcome = Outcome({}, dict(loaded["missing"]), notes=folder_notes)
    costs: dict[str, dict[str, float]] = {}  # task -> tokens, questions, seconds
    begin = time.monotonic()
    with quiet_bars(), LiveTable(counts) as table:
        energy = outcome.energy = EvaluationEnergy(lm.model.head_weight.device)

        def advance(task: str, questions: int) -> None:
            table.advance(task, questions)
            energy.now()  # before a counter has wrapped around

        lm.progress = advance
        for name, task in tasks.items():
            table.start_task(name, counts[name])
            before, computed, started = energy.now(), lm.computed, time.monotonic()
            choice, cut = chosen[name], lm.truncated
            try:
                result = evaluate(
                    lm,
                    {"tasks": {name: task}, "groups": {}, "group_map": {}},
                    samples=None if choice is None else {name: list(choice.ids)},
                    bootstrap_iters=bootstrap_iters,
                    confirm_run_unsafe_code=True,  # tasks are loaded only if code is allowed
                    apply_chat_template=chat,
                    fewshot_as_multiturn=chat,  # as on the harness's command line
                    system_instruction=system,
                )
            except (CacheError, MemoryError):
                raise
            except Exception as error:  # the task's own code may raise anything
                if is_out_of_memory(error):
                    raise MemoryError(f"{name}: {_reason(error)}; try a smaller budget") from error
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise
                log.debug("task %s", name, exc_info=True)
                outcome.failed.append(name)
                outcome.not_scored[name] = _reason(error)
                table.fail(name, outcome.not_scored[name])
                continue
            used = TaskEnergy(energy.now() - before, lm.computed - computed, counts[name])
            energy.add(name, used)
            result["truncated"] = {name: lm.truncated - cut}
            if used.tokens:  # the answers from the cache cost nothing
                costs[name] = {**used._asdict(), "seconds": time.monotonic() - started}
                del costs[name]["joules"]
            if choice is not None:
                result["drawn"] = {name: choice.to_dict()}
            row, key = result["results"][name], keys.get(name)
            cluster_errors(row, result["samples"][name])
            if score_of(row, key) is None:
                outcome.not_scored[name] = notes.pop(name, "no question has a score")
            outcome.notes = folder_notes + by_text(notes)
            facts |= {
                "seconds": time.monotonic() - begin,
                "truncated": lm.truncated,
                "cached": lm.cached,
                "energy": energy.facts(),
                "costs": costs,
                "not_scored": outcome.not_scored,
                "notes": "; ".join(outcome.notes) or None,
            }
            write_run(out, result, joined(facts, earlier, own), add=True)
            _merge(outcome.results, result)
            table.finish(name, row, key)
    add_groups(outcome.results, loaded)
    if outcome.results:
        facts["not_scored"] = outcome.not_scored
        write_run(out, outcome.results, joined(facts, earlier, own), add=True)
    return outcome


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """Hide progress bars of the harness and of datasets, which would disturb the table."""
    import datasets
    from lm_eval.api import task

    stock, shown = task.tqdm, not datasets.are_progress_bars_disabled()
    task.tqdm = lambda documents, **options: documents
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        task.tqdm = stock
        if shown:
            datasets.enable_progress_bars()


def _reason(error: Exception) -> str:
    """The error as one line, with its class name unless it is a ValueError."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def by_text(notes: Mapping[str, str]) -> list[str]:
    """Notes on tasks as lines of text; tasks with equal notes share a line."""
    tasks: dict[str, list[str]] = {}
    for task, text in notes.items():
        tasks.setdefault(text, []).append(task)
    return [f"{join_names(names, 3)}: {text}" for text, names in tasks.items()]


def _chosen(name: str, task: Any, limits: Limits) -> Choice | None:
    """The questions to ask; None for all, and if the task's own code fails."""
    try:
        return limits.choose(name, task.eval_docs)
    except Exception:  # the task's evaluation reports the error
        return None


def _questions(task: Any, choice: Choice | None) -> int:
    """Number of questions, or 0 if the task's own code fails; its evaluation reports the error."""
    if choice is not None:
        return len(choice.ids)
    try:
        return len(task.eval_docs)
    except Exception:
        return 0


def _merge(results: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if key == "samples":
            continue
        if isinstance(value, dict):
            results.setdefault(key, {}).update(value)
        else:
            results[key] = value
