"""A training run's folder as a model: its tokenizer is that of the data it learned from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from llama_fast.data import DataError, ShardWriter, TokenShards
from llama_fast.models.loading import load_model
from llama_fast.train.config import DataOptions, TrainConfig
from llama_fast.train.run import TrainingRun


def write(folder: Path, text: str) -> str:
    with ShardWriter(folder, vocab_size=257, tokenizer={"path": "byte"}) as writer:
        for _ in range(40):
            writer.add([256, *text.encode(), 256])
    return TokenShards(folder).content_sha256


def test_other_data_in_the_place_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = tmp_path / "shards", tmp_path / "run"
    learned = write(shards, "To be, or not to be, that is the question.")
    data = DataOptions(train=str(shards), seq_len=32, micro_batch_size=2)
    TrainingRun(
        TrainConfig(out=str(out), steps=1, device="cpu", data=data), log=lambda line: None
    ).train()
    assert load_model(out)[1].vocab_size == 257
    shutil.rmtree(shards)
    other = write(shards, "Whether 'tis nobler in the mind to suffer the slings and arrows")
    with pytest.raises(DataError, match=rf"shards: expected .*{learned}, got other data, {other}"):
        load_model(out)
    assert load_model(out, tokenizer="byte")[1].vocab_size == 257
    export = ["export", str(out), "--to", "hf", "--out", str(tmp_path / "hf")]
    assert main(export) == 2
    said = capsys.readouterr().err
    assert "say the model's tokenizer (--tokenizer PATH)" in said and said.count("\n") == 1
    assert not (tmp_path / "hf").exists()
    assert main([*export, "--tokenizer", "none"]) == 0
