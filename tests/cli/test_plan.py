"""`llama-fast plan` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from llama_fast.data import ShardWriter
from tests.paths import REPOSITORY

CONFIG = str(REPOSITORY / "configs" / "llama3-8b-fsdp.yaml")


def test_prints_what_a_run_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    command = ["plan", CONFIG, "--gpus", "64", "--mfu", "0.5"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == said  # the tables, beside the object
    found = json.loads(captured.out)
    assert found["gpus"] == 64 and found["mesh"]["replicate"] == 8 and found["fits"] is True
    parts = {kind: size for kind, size in found["memory"].items() if kind != "peak"}
    assert sum(parts.values()) == found["memory"]["peak"]
    assert "8,030.3 M weights on 64 × H100: replicate 8 × shard 8" in said
    for kind, size in found["memory"].items():
        assert f"{kind:17} │ {size / 1e9:5,.2f}" in said
    assert found["checkpoint"] == sum(
        found["memory"][kind] for kind in ("weights", "optimizer moments")
    )
    assert f"host, when saving │ {found['checkpoint'] / 1e9:5,.2f}" in said
    assert f"{found['step']['tokens_per_second']:,.0f} tokens/s" in said
    assert "at 50% of 989 TFLOP/s" in said and "all-gather of 8" in said
    assert said.rstrip().endswith("fits")


def test_options_of_train_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", CONFIG, "--data.micro_batch_size", "4", "--activation-checkpointing=none"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "checkpointing none; a step of 1,048,576 tokens: 4 micro-batches of 4 × 8,192 on 8 ranks"
        in said
    )
    assert "does not fit. These settings would fit, with the same batch size:" in said
    assert "data.micro_batch_size 1, activation_checkpointing full, optimizer.grad" in said


def test_the_vocabulary_is_that_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardWriter(tmp_path / "shards", vocab_size=1000, tokenizer={}) as writer:
        writer.add([1, 2, 3])
    # A folder named as in the default configuration, which the user may have forgotten.
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--gpus", "1", "--data.train", "shards"]) == 0
    note = "The vocabulary is that of shards, 1,000 tokens; debug has 256 (--vocab-size 256)"
    assert note in capsys.readouterr().out
    command = ["plan", "--gpus", "1", "--json", "--data.train"]
    for given, expected in (
        ([str(tmp_path / "shards")], 1000),
        (["none"], 256),
        (["none", "--vocab-size", "512"], 512),
    ):
        assert main([*command, *given]) == 0
        assert json.loads(capsys.readouterr().out)["model"]["vocab_size"] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "config: no such file: no.yaml"),
        ([CONFIG, "--gpus", "12"], "--gpus: expected the product of parallel.replicate auto"),
        ([CONFIG, "--gpu", "abacus"], "--gpu: expected one of a100, a100-40gb, h100"),
        ([CONFIG, "--parallel.tensor", "0"], "parallel.tensor: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
