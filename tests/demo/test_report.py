import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from llama_fast.demo import report
from llama_fast.demo.answer import Answer, Logits
from llama_fast.demo.finetune import Comparison, SideResult
from llama_fast.demo.finetune_side import FinetuneSettings
from llama_fast.demo.kernels import Check
from llama_fast.demo.results import Results, fastest
from llama_fast.eval.multiple_choice import Score

SETTINGS = FinetuneSettings("m.gguf", "data", "auto", 3, 2, 100, 1e-5, "float32", 0, 2)
RUNS = [
    SideResult("torch", [3.0, 2.5, 2.0], [9.0, 2.0, 4.0], 2.9, 2.4, 10**9, 4 * 10**9),
    SideResult("llama_fast", [3.0, 2.5, 2.25], [9.0, 1.0, 1.0], 2.9, 2.5, 10**9, 2 * 10**9),
    SideResult("llama_fast", [3.0, 2.5, 2.25], [9.0, 1.0, 2.0], 2.9, 2.5, 10**9, 3 * 10**9),
    SideResult("torch", [3.0, 2.5, 2.0], [9.0, 4.0, 4.0], 2.9, 2.4, 10**9, 5 * 10**9),
]


def some_checks(ok: bool) -> list[Check]:
    return [
        Check(op, "a | b", backend, dtype, 1e-7, 0.0, 2e-7, 0.0, ok)
        for op, backend in (("attention", "cpu"), ("rope", "triton"), ("rope", "cpu"))
        for dtype in ("float32", "bfloat16")
    ]


def results(ok: bool = True) -> Results:
    return Results(
        command="llama-fast demo",
        facts={
            "versions": {"python": "3", "torch": "2", "llama_fast": "0"},
            "cpu": {"model": "CPU", "torch_threads": 2, "instruction_set": "avx2"},
        },
        checks=some_checks(ok),
        answer=Answer("The capital of France is", " Paris.", 20.0),
        logits=Logits(64, 40.0, 1e-5, 2e-5, 1.0, True),
        training=Comparison(SETTINGS, RUNS),
        scores=[
            Score("ARC-Easy", 50, 0.5, 0.07, 0.55, 0.25),
            Score("One", 1, 1.0, math.nan, 1, 0.5),
        ],
        seconds={"kernels": 3.2, "model": 4.0},
    )


def test_medians_leave_the_first_step_out() -> None:
    training = Comparison(SETTINGS, RUNS)
    # Steps after the first: torch 2, 4, 4, 4 s; ours 1, 1, 1, 2 s; 200 tokens each.
    assert training.tokens_per_second("torch") == 50
    assert training.tokens_per_second("llama_fast") == 200
    assert training.peak("torch") == 4.5e9
    assert training.largest_loss_difference() == 0.25
    one_step = Comparison(SETTINGS, [SideResult("torch", [3.0], [8.0], 2.0, 1.0, 1, 1)])
    assert one_step.tokens_per_second("torch") == 25


def test_summary_says_what_was_found() -> None:
    rows = {row[0]: row[1:] for row in report.summary_rows(results())}
    assert rows["largest kernel error, float32"] == ("1.0e-07", "2.0e-07", "6 of 6 checks pass")
    assert rows["“The capital of France is”"][2] == "as expected"
    assert rows["fine-tuning, tokens per second"] == ("200", "50", "4.0× the speed")
    assert rows["fine-tuning, peak memory"] == ("2.50 GB", "4.50 GB", "0.56× the memory")
    assert rows["ARC-Easy, accuracy (50 questions)"] == (
        "50.0% ± 7.0%",
        "25.0% (guessing)",
        "+3.6 standard errors",
    )


def test_reference_alone_is_no_passed_check() -> None:
    """The reference cannot fail against itself, so it must not count as a proof."""
    only = replace(results(), checks=[replace(c, backend="reference") for c in some_checks(True)])
    assert report.summary_rows(only)[0][3] == "no compiled kernels to check"


def test_written_report_is_complete(tmp_path: Path) -> None:
    path = report.write(results(), tmp_path)
    assert path == tmp_path / "demo-report.md"
    text = path.read_text("utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 4
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            image.load()
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # something is drawn
    # Every table has as many cells in each row as in its header; "a | b" must not add one.
    for table in re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    assert "a \\| b" in text
    raw = json.loads((tmp_path / "demo-report" / "results.json").read_text("utf-8"))
    assert raw["training"]["runs"][1]["losses"] == [3.0, 2.5, 2.25]
    assert "Every check passed." in text


def test_failures_stand_at_the_top(tmp_path: Path) -> None:
    bad = results(ok=False)
    assert len(bad.failures()) == 6
    text = report.markdown(bad)
    assert "attention (a | b) on cpu in float32" in text
    assert text.index("Failed checks") < text.index("## Kernels")
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    console.print(report.kernel_table(bad.checks))
    console.print(report.summary_table(bad))
    shown = console.export_text()
    assert shown.count("FAIL") == 6  # two ops on two backends, one op on one, two precisions
    assert "0 of 6 checks pass" in shown


def test_worse_logits_and_another_answer_are_failures() -> None:
    bad = results()
    bad.logits = replace(bad.logits, ok=False)
    bad.answer = replace(bad.answer, text=" Lyon.")
    assert len(bad.failures()) == 2
    assert "“ Lyon.”" in report.markdown(bad)


def test_fastest_takes_the_first_backend_of_each_op() -> None:
    chosen = fastest(some_checks(True))
    assert {(c.op, c.backend) for c in chosen} == {("attention", "cpu"), ("rope", "triton")}


@pytest.mark.parametrize("steps", [1, 40])
def test_pictures_of_short_and_long_runs(tmp_path: Path, steps: int) -> None:
    runs = [
        SideResult(side, [2.0] * steps, [1.0] * steps, 2.0, 1.9, 1, 10**9)
        for side in ("torch", "llama_fast")
    ]
    report.write(replace(results(), training=Comparison(SETTINGS, runs)), tmp_path)
    assert (tmp_path / "demo-report" / "loss.png").stat().st_size > 5000
