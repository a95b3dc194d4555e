"""`llama-fast eval choose`, and `eval --purpose` with a small model on real questions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from tests import paths
from tests.paths import data_file


def test_a_purpose_is_asked_and_estimated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stories = str(data_file("checkpoints/stories260k") / "stories260K.bin")
    out = tmp_path / "run"
    command = ["eval", stories, "--purpose", "quick", "--minutes", "0.1", "--device", "cpu"]
    # 1 if a text that was drawn is longer than this model's 512 tokens.
    command += ["--data-dir", str(paths.mirror()), "--out", str(out), "--json"]
    assert main(command) in (0, 1)
    printed = json.loads(capsys.readouterr().out)
    found = printed["estimate"]
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 100
    known = [task for task in ("hellaswag", "arc_easy", "piqa") if task in printed]
    assert "arc_easy" in known
    mean = sum(printed[task]["value"] for task in known) / len(known)
    assert found["value"] == pytest.approx(mean)
    assert main(["eval", "choose", str(out), "--difference", "5", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["benchmarks"]}
    assert rows["ARC-Easy"]["score"] == pytest.approx(printed["arc_easy"]["value"])
    assert rows["ARC-Easy"]["minutes_for_difference"] > 0 and rows["MMLU"]["score"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--purpose", "fame"], "--purpose: expected one of training, base, chat, .*got 'fame'"),
        (["--minutes", "3"], "--minutes: expected --purpose beside it, got none"),
        (["--purpose", "quick", "--minutes", "0"], "--minutes: expected a positive number, got 0"),
        (["--purpose", "quick", "--limit", "3"], "--limit: expected none beside --purpose, got 3"),
        (["--purpose", "code"], "--allow-code: expected with --purpose code"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "model", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.search(message, said)


def test_a_wrong_difference_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "choose", "--difference", "0"]) == 2
    assert "--difference: expected one in (0, 100], got 0" in capsys.readouterr().err
