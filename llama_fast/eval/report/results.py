"""Reads and writes a run's files, results.json and samples_<task>.jsonl, as the harness does."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_fast._inside import inside
from llama_fast._reading import read_json, read_json_lines
from llama_fast._write import write_whole

RESULTS = "results.json"

# Keys of the harness's results that hold one entry per task or group.
BY_TASK = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "task_hashes",
    "drawn",
    "truncated",
)


@dataclass(frozen=True)
class Run:
    """A run on disk; samples are read on demand.

    Attributes:
        path: the results file.
        results: its content.
        files: task -> file of its samples, if there is one.
    """

    path: Path
    results: dict[str, Any]
    files: dict[str, Path]

    @property
    def metadata(self) -> dict[str, Any]:
        """The `metadata` passed to `write_run`; empty if the harness wrote the run."""
        return dict(self.results.get("llama_fast") or {})

    @property
    def name(self) -> str:
        """The model's name, else the name of the folder."""
        named = self.metadata.get("model") or self.results.get("model_name")
        return str(named or self.path.parent.name)

    @property
    def tasks(self) -> list[str]:
        """Tasks with a score, without groups."""
        groups = {name for name, of in self.results.get("group_subtasks", {}).items() if of}
        return [name for name in self.results["results"] if name not in groups]

    def samples(self, task: str) -> Iterator[dict[str, Any]]:
        """The samples in a task's file: one for each question and filter.

        Raises:
            ValueError: a line is not a JSON object; names file and line.
        """
        for _, sample in read_json_lines(self.files[task]):
            yield sample


def write_run(
    folder: str | os.PathLike[str],
    results: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    *,
    add: bool = False,
) -> Path:
    """Write the results of `lm_eval.evaluator.evaluate` or `simple_evaluate`.

    `results.json` has the keys of the harness's own file, plus `llama_fast` for `metadata` and
    `drawn` for the questions of tasks with a limit (how they were chosen, seed, ids) and
    `truncated` for the number of each task's contexts that were cut. Tasks
    are written one by one, each file atomically, so that finished tasks survive a crash or a full
    disk. `results` is not modified (the harness's own writer modifies the samples).

    Args:
        folder: created if missing.
        results: the return value; without `samples`, only results.json is written.
        metadata: facts for the report. Known: `model`, `dtype`, `quantization`, `device`,
            `machine`, `date` (seconds since 1970), `seconds`, `truncated` (contexts), `cached`
            (requests), `energy`, `max_length`, `not_scored` (name -> reason), `preset`, `command`,
            `model_source`, `chat_template`, `system_instruction`; others are shown unchanged.
        add: whether to keep the tasks in an existing results.json.

    Returns:
        The path of results.json.

    Raises:
        OSError: a file could not be written; names it, and the tasks that are kept.
        ValueError: `add`, and the existing results.json is damaged.
    """
    from lm_eval.utils import hash_string

    folder = Path(folder)
    path = folder / RESULTS
    content: dict[str, Any] = {}
    if add and path.exists():
        content = _load(path)
    facts = dict(metadata or content.get("llama_fast") or {})
    samples = results.get("samples") or {}
    kept = list(content.get("results", {}))
    current = "results"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in results.items():
            if key not in BY_TASK and key != "samples":
                content[key] = value
        content.update(_general(results, facts))
        content["llama_fast"] = facts
        for task, of_task in samples.items():
            current = f"samples of {task}"
            write_whole(folder / samples_file(task), _lines(of_task))
            hashes = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in of_task)
            _merge(content, results, [task])
            content.setdefault("task_hashes", {})[task] = hash_string(hashes)
            current = f"results of {task}"
            write_whole(path, [_dump(content)])
            kept.append(task)
        current = "results"
        _merge(content, results, None)
        write_whole(path, [_dump(content)])
    except OSError as error:
        have = ", ".join(dict.fromkeys(kept)) or "none"
        reason = error.strerror or str(error)
        raise OSError(
            f"{folder}: cannot write the {current}: {reason}; tasks kept: {have}"
        ) from error
    return path


def read_run(path: str | os.PathLike[str]) -> Run:
    """Find and read a run.

    Args:
        path: a folder written by :func:`write_run`, a folder passed to lm-eval's `--output_path`
            (its newest run is read), or a results file.

    Raises:
        FileNotFoundError: there are no results.
        ValueError: the file is damaged or has another format.
    """
    path = Path(path)
    file_path = path
    if path.is_dir():
        candidates = [path / RESULTS, *sorted(path.glob("results_*.json"), reverse=True)]
        candidates += sorted(path.glob("*/results_*.json"), key=lambda p: p.name, reverse=True)
        existing = [file for file in candidates if file.exists()]
        if not existing:
            raise FileNotFoundError(f"{path}: expected a folder with {RESULTS} of an evaluation")
        file_path = existing[0]
    elif not path.exists():
        raise FileNotFoundError(f"{path}: expected the folder of an evaluation, found nothing")
    results = _load(file_path)
    # The harness adds the time to both names: results_<time>.json, samples_<task>_<time>.jsonl.
    stamp = file_path.stem[len("results") :]
    files: dict[str, Path] = {}
    for task in results["results"]:
        name = samples_file(task).replace(".jsonl", f"{stamp}.jsonl")
        file = inside(file_path.parent, name, file_path)
        if file.exists():
            files[task] = file
    return Run(file_path, results, files)


def samples_file(task: str) -> str:
    """Name of the file with a task's samples."""
    return f"samples_{re.sub(r'[^A-Za-z0-9_.-]+', '_', task)}.jsonl"


def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    wrong = f"{path}: expected the results of an evaluation as JSON, got"
    for key in BY_TASK:
        if (value := content.get(key, {} if key != "results" else None)) is None:
            if key == "results":
                raise ValueError(f"{wrong} none")
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{wrong} {type(value).__name__} for {key!r}")
    for key in ("results", "configs", "n-samples"):
        for task, entry in (content.get(key) or {}).items():
            if not isinstance(entry, dict):
                raise ValueError(f"{wrong} {type(entry).__name__} for {task!r:.80} in {key!r}")
    for task, members in (content.get("group_subtasks") or {}).items():
        if not isinstance(members, list) or not all(isinstance(name, str) for name in members):
            raise ValueError(f"{wrong} no list of names for {task!r:.80} in 'group_subtasks'")
    if not isinstance(content.get("llama_fast") or {}, dict):
        raise ValueError(f"{wrong} no object for 'llama_fast'")
    return content


def _general(results: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's entries on model, chat template and time."""
    from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

    config = results.get("config") or {}
    tracker = GeneralConfigTracker()
    tracker.log_experiment_args(
        model_source=str(facts.get("model_source") or config.get("model") or "llama_fast"),
        model_args=config.get("model_args") or {"pretrained": facts.get("model", "model")},
        system_instruction=facts.get("system_instruction"),
        chat_template=facts.get("chat_template"),
        fewshot_as_multiturn=bool(facts.get("fewshot_as_multiturn", False)),
    )
    if "seconds" in facts:
        tracker.total_evaluation_time_seconds = str(facts["seconds"])
    return asdict(tracker)


def _merge(
    content: dict[str, Any], results: Mapping[str, Any], tasks: Iterable[str] | None
) -> None:
    for key in BY_TASK:
        new = results.get(key)
        if new is None:
            continue
        names = new if tasks is None else [task for task in tasks if task in new]
        content.setdefault(key, {}).update({name: new[name] for name in names})


def _lines(samples: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    from lm_eval.utils import sanitize_list

    for sample in samples:
        arguments = {
            f"gen_args_{i}": {f"arg_{j}": part for j, part in enumerate(argument)}
            for i, argument in enumerate(sample["arguments"])
        }
        changed = {
            "arguments": arguments,
            "resps": sanitize_list(sample["resps"]),
            "filtered_resps": sanitize_list(sample["filtered_resps"]),
            "target": str(sample["target"]),
        }
        yield _dump({**sample, **changed}, indent=None) + "\n"


def _dump(value: Any, indent: int | None = 2) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)
