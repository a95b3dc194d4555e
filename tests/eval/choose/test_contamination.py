"""What `eval choose` takes from a report of `data check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from llama_fast.eval.choose.contamination import dirty_shares
from tests.paths import data_file


def test_the_share_is_that_of_data_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three questions of GSM8K with their answers in the training data, of all its rows."""
    benchmark = data_file("hub/openai/gsm8k/main/test.jsonl")
    with benchmark.open() as file:
        rows = [json.loads(line) for line in file]
    known = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows[:3]]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in known))
    shards, out = tmp_path / "shards", tmp_path / "out"
    assert main(["tokenize", str(texts), "--train-bpe", "300", "--out", str(shards)]) == 0
    command = ["data", "check", str(shards), "--against", str(benchmark), "--out", str(out)]
    assert main(command) == 0
    capsys.readouterr()
    found = dirty_shares(out / "contamination.json")
    assert found == {"GSM8K": 3 / len(rows)}
    page = tmp_path / "choose.html"
    options = ["--contamination", str(out / "contamination.json"), "--html", str(page), "--json"]
    assert main(["eval", "choose", *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    dirty = {row["name"]: row["dirty"] for row in printed["benchmarks"]}
    assert dirty["GSM8K"] == found["GSM8K"] and dirty["PIQA"] is None
    assert min(row["tokens_per_question"] for row in printed["benchmarks"]) > 5
    assert len(printed["few"]) == len(printed["held_out_errors"])
    text = page.read_text()
    assert f"{300 / len(rows):.1f} % of the questions are dirty" in text
    assert "not looked for" in text and "<script" not in text


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"counts": {}}')
    for path, message in ((tmp_path / "no", "no such file"), (other, "which lacks 'benchmarks'")):
        assert main(["eval", "choose", "--contamination", str(path)]) == 2
        said = capsys.readouterr().err
        assert "--contamination: " in said and message in said and said.count("\n") == 1
