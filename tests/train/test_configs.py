"""The files in configs/: each is read as it stands, and makes the model it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_fast.cli.train import read_config
from llama_fast.train.config import TrainConfig
from llama_fast.train.run import make_model
from tests.paths import REPOSITORY

FILES = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reads(path: Path) -> None:
    config = read_config([str(path), "--seed", "5"])
    assert isinstance(config, TrainConfig)
    assert config.seed == 5 and config.out == f"runs/{path.stem}"


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"),
    [("debug", 257, 0.1), ("smollm2-finetune", 49152, 134.5), ("scratch-110m", 32000, 109.5)],
)
def test_sizes(name: str, vocab_size: int, millions: float) -> None:
    model = make_model(read_config([str(REPOSITORY / "configs" / f"{name}.yaml")]), vocab_size)
    assert model.config.num_parameters() / 1e6 == pytest.approx(millions, abs=0.06)
