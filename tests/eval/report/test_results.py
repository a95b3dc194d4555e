"""The files of a run: what the harness's own writer writes, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llama_fast.eval.report import read_run, write_run
from tests.eval.report.runs import FLOAT32, QUESTIONS


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval returns for two tasks of each kind of request, answered by its random model."""
    from lm_eval.api.registry import get_model
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("questions")
    docs = [{"q": f"What is {n} + {n}? <b>é\u2028</b>", "a": str(n)} for n in range(5)]
    path = folder / "sums.jsonl"
    path.write_text("\n".join(json.dumps(doc) for doc in docs))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder)},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
    }
    written = {
        **shared,
        "task": "sums_written",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"]},
    }
    chosen = {
        **shared,
        "task": "sums_chosen",
        "output_type": "multiple_choice",
        "doc_to_choice": ["zero", "two", "four", "six", "eight"],
    }
    tasks = TaskManager(include_defaults=False).load([chosen, written])
    return evaluate(get_model("dummy")(), tasks, bootstrap_iters=0)


def copy(results: dict[str, Any]) -> dict[str, Any]:
    """As deep as the harness's writer changes it."""
    samples = {task: [dict(s) for s in found] for task, found in results["samples"].items()}
    return {**results, "samples": samples}


def test_the_files_are_the_harness_s(evaluated: dict[str, Any], tmp_path: Path) -> None:
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.log_experiment_args("dummy", "pretrained=m", None, None, False)
    theirs = copy(evaluated)
    samples = theirs.pop("samples")
    tracker.save_results_aggregated(results=theirs, samples=samples)
    for task, found in samples.items():
        tracker.save_results_samples(task_name=task, samples=found)
    before = json.dumps(evaluated, default=str)
    write_run(tmp_path / "ours", evaluated, {"model": "m", "model_source": "dummy"})

    assert json.dumps(evaluated, default=str) == before  # theirs changes the samples, ours not
    their_run, our_run = read_run(tmp_path / "theirs"), read_run(tmp_path / "ours")
    assert their_run.path.name.startswith("results_2") and our_run.path.name == "results.json"
    assert our_run.results.pop("llama_fast") == {"model": "m", "model_source": "dummy"}
    for run in (their_run, our_run):
        del run.results["total_evaluation_time_seconds"]
    assert our_run.results == their_run.results
    assert set(our_run.files) == set(their_run.files) == {"sums_chosen", "sums_written"}
    for task, path in our_run.files.items():
        assert path.name == f"samples_{task}.jsonl"
        assert path.read_bytes() == their_run.files[task].read_bytes()


def test_tasks_are_added_one_after_the_other(evaluated: dict[str, Any], tmp_path: Path) -> None:
    for task in ("sums_chosen", "sums_written"):
        part = {
            key: {task: value[task]} if isinstance(value, dict) and task in value else value
            for key, value in copy(evaluated).items()
        }
        write_run(tmp_path / "parts", part, {"model": "m"}, add=True)
        assert task in read_run(tmp_path / "parts").tasks
    write_run(tmp_path / "whole", evaluated, {"model": "m"})
    parts, whole = read_run(tmp_path / "parts"), read_run(tmp_path / "whole")
    assert parts.results == whole.results
    assert [*parts.samples("sums_chosen")] == [*whole.samples("sums_chosen")]
    # Without `add` a run begins anew.
    write_run(tmp_path / "parts", part, {"model": "m"})
    assert read_run(tmp_path / "parts").tasks == ["sums_written"]


def test_a_disk_that_cannot_take_a_task_keeps_the_ones_before(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    big = copy(evaluated)
    big["samples"]["sums_written"] = big["samples"]["sums_written"] * 200
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this: enough for all but the last samples.
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            write_run(tmp_path / "run", big, {"model": "m"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "samples of sums_written" in str(caught.value)
    assert "tasks kept: sums_chosen" in str(caught.value)
    run = read_run(tmp_path / "run")
    assert list(run.files) == ["sums_chosen"] and len([*run.samples("sums_chosen")]) == 5
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk(evaluated: dict[str, Any], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root that can mount a small disk")
    try:
        big = copy(evaluated)
        big["samples"]["sums_written"] = big["samples"]["sums_written"] * 200
        with pytest.raises(OSError, match=r"No space left on device; tasks kept: sums_chosen"):
            write_run(disk / "run", big, {"model": "m"})
        assert list(read_run(disk / "run").files) == ["sums_chosen"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_is_read_back() -> None:
    run = read_run(FLOAT32)
    assert run.name == "SmolLM2-135M-Instruct" and run.tasks == list(QUESTIONS)
    filters = {"gsm8k": 2}  # strict and flexible
    for task, n in QUESTIONS.items():
        assert len([*run.samples(task)]) == n * filters.get(task, 1)
    assert read_run(FLOAT32 / "results.json").results == run.results


def test_groups_are_no_tasks(tmp_path: Path) -> None:
    shutil.copytree(FLOAT32, tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    content = json.loads(path.read_text())
    content["results"]["science"] = {"acc,none": 0.5, "alias": "science"}
    content["group_subtasks"] = {"science": ["arc_easy"]}
    path.write_text(json.dumps(content))
    assert read_run(tmp_path / "run").tasks == list(QUESTIONS)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: expected the folder of an evaluation"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected a folder with results\.json"):
        read_run(tmp_path)
    for text in ("{", "[]", '{"results": 3}', "{}"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match=r"results\.json: (expected|not JSON)"):
            read_run(tmp_path)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    shutil.copytree(FLOAT32, tmp_path / "run")
    path = tmp_path / "run" / "samples_piqa.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"samples_piqa\.jsonl:12: not JSON"):
        list(read_run(tmp_path / "run").samples("piqa"))
