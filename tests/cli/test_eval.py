"""`llama-fast eval` as a person gives it, on the 260 K model and real questions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from llama_fast.eval.limits import Limits
from llama_fast.eval.report import read_run
from tests.paths import REPOSITORY, data_file, mirror

STORIES = "checkpoints/stories260k"


def model() -> list[str]:
    stories = data_file(STORIES)
    return [str(stories / "stories260K.bin"), "--tokenizer", str(stories / "tok512.bin")]


def data_dir() -> str:
    return str(mirror())


@pytest.mark.slow
def test_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A suite's benchmarks of each kind, a scenario, and a second run that asks nothing anew."""
    out = tmp_path / "run"
    command = [
        "eval", *model(), "--data-dir", data_dir(), "--out", str(out), "--limit", "3,arc_easy=6",
        "--tasks", "arc_easy,openbookqa_ratio,mmlu_5shot_anatomy,nq_open_5shot,scenario_dialogsum",
        "--num-fewshot", "1", "--max-length", "512",
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "arc_easy" in said and "report:" in said
    run = read_run(out)
    asked = {task: run.results["n-samples"][task]["effective"] for task in run.tasks}
    assert asked == {
        "arc_easy": 6, "openbookqa_ratio": 3, "mmlu_5shot_anatomy": 3, "nq_open_5shot": 3,
        "scenario_dialogsum": 3,
    }  # fmt: skip
    assert all(len(list(run.samples(task))) == n for task, n in asked.items())
    assert run.metadata["truncated"] > 0  # a dialogue and its example are longer than 512 tokens
    assert run.metadata["cached"] == 0
    assert "arc_easy" in (out / "report.html").read_text()
    first = {task: run.results["results"][task] for task in run.tasks}
    assert main(command) == 0
    again = read_run(out)
    assert {task: again.results["results"][task] for task in again.tasks} == first
    requests = sum(len(s["arguments"]) for task in run.tasks for s in run.samples(task))
    assert again.metadata["cached"] == requests
    capsys.readouterr()
    assert main([*command, "--json"]) == 0  # the third time
    printed = capsys.readouterr()
    scores = json.loads(printed.out)
    assert scores.keys() >= set(run.tasks) - {"scenario_dialogsum"} and "report:" in printed.err
    assert scores["arc_easy"]["value"] == 100 * first["arc_easy"]["acc_norm,none"]
    assert scores["arc_easy"]["questions"] == 6
    assert main(["eval", "compare", str(out), str(out)]) == 0
    table = capsys.readouterr().out
    assert "arc_easy" in table
    assert main(["eval", "compare", str(out), str(out), "--json"]) == 0
    printed = capsys.readouterr()
    rows = {row["task"]: row for row in json.loads(printed.out)["tasks"]}
    assert rows["arc_easy"]["n"] == 6 and rows["arc_easy"]["difference"] is not None
    assert printed.err == table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "helaswag"], "hellaswag"),
        (["--suite", "llama3"], "expected one of llama2-paper, lm-eval"),
        ([], "suite: expected --suite NAME or --tasks A,B, got neither"),
        (["--tasks", "piqa", "--limit", "some"], "limit: expected N or TASK=N"),
        (["--tasks", "piqa", "--first", "0"], "first: expected N or TASK=N"),
        (["--tasks", "piqa", "--limit", "3", "--first", "2"], "expected --limit or --first"),
        (
            ["--tasks", "piqa", "--limit", "pika=3"],
            "limit: expected the name of a task or a pattern",
        ),
        (["--tasks", "piqa", "--batch", "0"], "batch: expected at least 1, got 0"),
        (["--tasks", "piqa", "--data-dir", "/nowhere"], "/nowhere"),
        (["--tasks", "humaneval"], "allow"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", *model(), "--data-dir", data_dir(), "--out", str(tmp_path), *arguments]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_model_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = shutil.copy(model()[0], tmp_path)  # a tok512.bin beside it would be taken
    command = ["eval", alone, "--data-dir", data_dir(), "--out", str(tmp_path)]
    assert main([*command, "--tasks", "piqa"]) == 2
    assert "tokenizer: expected one" in capsys.readouterr().err
    assert main(["eval", "no-such-model", *command[2:], "--tasks", "piqa"]) == 2
    assert "model: no such file or folder: no-such-model" in capsys.readouterr().err


def test_a_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hub" / "baber" / "piqa" / "default"
    shutil.copytree(mirror() / "hub/baber/piqa/default", folder)
    file = folder / "validation.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[6] = lines[6][:40] + "\n"
    file.write_text("".join(lines))
    command = ["eval", *model(), "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main([*command, "--tasks", "piqa"]) == 2
    assert "piqa/default/validation.jsonl:7" in capsys.readouterr().err


FULL = """
import resource, signal, sys
from llama_fast.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_full_disk_keeps_finished_work(tmp_path: Path) -> None:
    """Files may not grow beyond a size, which fails a write as a full disk does."""
    command = [
        "eval", *model(), "--data-dir", data_dir(), "--out", str(tmp_path / "run"), "--no-cache",
        "--tasks", "arc_easy,hellaswag", "--limit", "arc_easy=3,hellaswag=60",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL, "100000", *command],
        capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot write the samples of hellaswag" in done.stderr
    assert "tasks kept: arc_easy" in done.stderr
    run = read_run(tmp_path / "run")
    assert run.tasks == ["arc_easy"] and len(list(run.samples("arc_easy"))) == 3
    json.loads((tmp_path / "run" / "results.json").read_text())


def test_limits() -> None:
    limits = Limits.parse("100, mmlu_*=4,mmlu_anatomy=all,piqa=7")
    assert [limits.of(t) for t in ("boolq", "mmlu_law", "mmlu_anatomy", "piqa")] == [
        100,
        4,
        None,
        7,
    ]
    assert Limits.parse(None).of("piqa") is None


def test_questions_are_drawn_or_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", *model(), "--data-dir", data_dir(), "--tasks", "boolq", "--json"]
    ids = {}
    for name, options in {
        "drawn": ["--limit", "4"],
        "more": ["--limit", "6"],
        "seed": ["--limit", "4", "--seed", "1"],
        "first": ["--first", "4"],
    }.items():
        out = tmp_path / name
        assert main([*command, *options, "--out", str(out)]) == 0
        said = json.loads(capsys.readouterr().out)["boolq"]
        low, high = said["interval"]
        assert said["questions"] == len(
            ids.setdefault(name, read_run(out).results["drawn"]["boolq"]["ids"])
        )
        assert 0 <= low <= said["value"] <= high <= 100 and low < high
        assert said["chance"] == 50 and said["headroom"] == 90 - said["value"]  # human: 90 %
    assert ids["first"] == [0, 1, 2, 3]
    assert set(ids["drawn"]) < set(ids["more"]) and ids["seed"] != ids["drawn"] != ids["first"]
    runs = [str(tmp_path / name) for name in ("drawn", "more")]
    assert main(["eval", "compare", *runs]) == 0
    said = capsys.readouterr().out
    assert "number of questions (boolq: A 4, B 6)" in said
    assert "4 questions in A, 6 in B; the 4 common ones are compared" in said
