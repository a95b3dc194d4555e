"""Two runs compared: real ones, with questions left out, and the command."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llama_fast.cli.main import main
from llama_fast.eval.report import read_run
from llama_fast.eval.report.compare import compare, table
from tests.eval.report.runs import BFLOAT16, FLOAT32


def test_two_real_runs() -> None:
    found = compare(read_run(FLOAT32), read_run(BFLOAT16))
    rows = {row.task: row for row in found.tasks}
    # Held against the harness's own scores.
    for task, row in rows.items():
        for run, value in ((found.a, row.a), (found.b, row.b)):
            harness = run.results["results"][task]
            key = f"{row.metric}," + ("strict-match" if task == "gsm8k" else "none")
            assert value == pytest.approx(100 * harness[key])
    assert (rows["piqa"].gained, rows["piqa"].lost) == (0, 1)
    # McNemar's test: of one question that changed, one was lost.
    assert rows["piqa"].difference.p == 1.0
    low, high = rows["piqa"].difference.low, rows["piqa"].difference.high
    assert low is not None and high is not None and -40 < low < -100 / 12 and 0 < high < 25
    questions, tasks = found.overall
    assert questions.n == 43 and questions.lost == 2 and questions.gained == 0
    assert questions.difference.value == pytest.approx(-100 * 2 / 43)
    assert tasks.difference.value == pytest.approx(np.mean([r.b - r.a for r in found.tasks]))
    assert not found.notices
    assert found.conditions == "the runs differ in dtype (A float32, B bfloat16)"
    again = compare(found.a, found.b)
    assert again.tasks == found.tasks and again.overall == found.overall


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """The bfloat16 run with fewer and shuffled PIQA questions, other prompts, a task gone."""
    folder = tmp_path / "partial"
    shutil.copytree(BFLOAT16, folder)
    path = folder / "samples_piqa.jsonl"
    lines = path.read_text().splitlines()[5:]
    path.write_text("\n".join(reversed(lines)) + "\n")
    path = folder / "samples_arc_easy.jsonl"
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    for sample in samples[:3]:
        sample["prompt_hash"] = "other"
    path.write_text("\n".join(map(json.dumps, samples)) + "\n")
    results = json.loads((folder / "results.json").read_text())
    del results["results"]["gsm8k"]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "samples_hellaswag.jsonl").unlink()
    return folder


def test_what_differs_between_the_runs_is_said(partial: Path) -> None:
    found = compare(read_run(FLOAT32), read_run(partial))
    assert [row.task for row in found.tasks] == ["arc_easy", "piqa", "winogrande"]
    piqa = found.tasks[1]
    # The lost question is among the seven: matched by content, not by place.
    assert piqa.n == 7 and piqa.lost == 1
    assert found.notices == (
        "only in A: gsm8k",
        "arc_easy: the prompts of 3 questions differ between the runs",
        "hellaswag: no samples in B",
        "piqa: 12 questions in A, 7 in B; the 7 common ones are compared",
    )


def test_the_command(partial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "out" / "page.html"
    assert main(["eval", "compare", str(FLOAT32), str(partial), "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "winogrande" in said and "0 / 1" in said and "all questions" in said
    assert "only in A: gsm8k" in said and page.stat().st_size > 20_000


@pytest.mark.parametrize("width", [100, 60, 52])
def test_the_table_fits_the_terminal(width: int) -> None:
    comparison = compare(read_run(FLOAT32), read_run(BFLOAT16), flips=100)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(comparison, width))
    said = console.export_text()
    assert "…" not in said and max(map(len, said.splitlines())) <= width
    for row in (*comparison.tasks, *comparison.overall):
        line = next(line for line in said.splitlines() if row.task in line)
        assert f"{row.a:.1f}" in line and f"{row.difference.value:+.1f}" in line
        assert f"{row.difference.low:+.1f} to {row.difference.high:+.1f}" in said


def test_runs_with_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"results": {"boolq": {"acc,none": 0.5}}}))
    assert main(["eval", "compare", str(FLOAT32), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected a task that both have; A has arc_easy" in error and "B has boolq" in error
    assert error.count("\n") == 1
    assert main(["eval", "compare", str(FLOAT32), str(tmp_path / "none")]) == 2
    assert "none: expected the folder of an evaluation" in capsys.readouterr().err


def test_one_question_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong and B right: no interval, in the terminal, in JSON and on the page."""
    folder = tmp_path / "b"
    shutil.copytree(FLOAT32, folder)
    path = folder / "samples_piqa.jsonl"
    sample = next(s for s in map(json.loads, path.read_text().splitlines()) if not s["acc_norm"])
    path.write_text(json.dumps({**sample, "acc_norm": 1.0}) + "\n")
    page = tmp_path / "page.html"
    assert main(["eval", "compare", str(FLOAT32), str(folder), "--json", "--html", str(page)]) == 0
    said = capsys.readouterr()
    piqa = next(row for row in json.loads(said.out)["tasks"] if row["task"] == "piqa")
    assert (piqa["n"], piqa["gained"], piqa["lost"]) == (1, 1, 0)
    assert piqa["difference"] == {"value": 100.0, "low": None, "high": None, "p": 1.0}
    assert "–" in next(line for line in said.err.splitlines() if "piqa" in line)
    assert '"low":null' in page.read_text()


def test_the_number_of_flips_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "compare", str(FLOAT32), str(BFLOAT16), "--flips", "0"]) == 2
    assert "--flips: expected at least 1, got 0" in capsys.readouterr().err
