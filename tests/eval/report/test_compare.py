"""The paired bootstrap, against cases whose answer is known, and the command."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llama_fast.cli.main import main
from llama_fast.eval.report import read_run
from llama_fast.eval.report.bootstrap import resample_means, summarise_resamples
from llama_fast.eval.report.compare import compare, table
from tests.eval.report.runs import BFLOAT16, FLOAT32


def test_resamples_have_the_exact_distribution() -> None:
    """All 5^5 samples of five differences can be listed."""
    differences = [1.0, 1.0, 0.0, -1.0, 0.5]
    every = np.array([np.mean(s) for s in itertools.product(differences, repeat=5)])
    drawn = resample_means(differences, 200_000, seed=3)
    values = np.unique(every.round(9))
    assert np.isin(drawn.round(9), values).all()
    for value in values:
        share = np.mean(every.round(9) == value)
        # Five standard errors of a share of 200,000 draws.
        assert abs(np.mean(drawn.round(9) == value) - share) < 5 * np.sqrt(share / 200_000) + 1e-9
    found = summarise_resamples(float(np.mean(differences)), drawn)
    exact = 2 * min(np.mean(every <= 1e-12), np.mean(every >= -1e-12))
    assert found.value == 0.3 and found.p == pytest.approx(exact, abs=0.01)
    assert (found.low, found.high) == tuple(np.quantile(every, [0.025, 0.975]).round(9))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        differences = generator.choice([-1.0, 0.0, 1.0], p=[0.1, 0.7, 0.2], size=400)
        found = summarise_resamples(0, resample_means(differences, 1000, seed=trial))
        covered += found.low <= 0.1 <= found.high
    # 95 % of 300 with a standard error of 1.3 %; the percentile interval is a bit short.
    assert 0.91 <= covered / 300 <= 0.98


def test_equal_runs_do_not_differ_and_a_constant_lead_is_certain() -> None:
    nothing = summarise_resamples(0.0, resample_means([0.0] * 50))
    assert (nothing.low, nothing.high, nothing.p) == (0.0, 0.0, 1.0)
    lead = summarise_resamples(1.0, resample_means([1.0] * 50))
    assert (lead.low, lead.high) == (1.0, 1.0) and lead.p == pytest.approx(2 / 10_001)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="differences: expected at least one"):
        resample_means([])
    with pytest.raises(ValueError, match="resamples: expected a number >= 1, got 0"):
        resample_means([1.0], 0)


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
    # A lost question of 12: no resample holds it with probability (11/12)^12.
    expected = 2 * (11 / 12) ** 12
    assert rows["piqa"].difference.p == pytest.approx(expected, abs=0.02)
    questions, tasks = found.overall
    assert questions.n == 43 and questions.lost == 2 and questions.gained == 0
    assert questions.difference.value == pytest.approx(-100 * 2 / 43)
    assert tasks.difference.value == pytest.approx(np.mean([r.b - r.a for r in found.tasks]))
    assert not found.notices
    assert found.conditions == "the runs differ in dtype (A float32, B bfloat16)"
    again = compare(found.a, found.b)
    assert again.tasks == found.tasks and again.overall == found.overall
    other = compare(found.a, found.b, seed=1)
    assert [row.a for row in other.tasks] == [row.a for row in found.tasks]
    assert other.tasks != found.tasks


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


@pytest.mark.parametrize("width", [100, 60, 48])
def test_the_table_fits_the_terminal(width: int) -> None:
    comparison = compare(read_run(FLOAT32), read_run(BFLOAT16), resamples=100)
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
