"""Each file in configs/ is valid, and its model has the stated size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_fast.cli.train import read_config
from llama_fast.train.build import make_model
from llama_fast.train.config import TrainConfig
from tests.paths import REPOSITORY

FILES = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reads(path: Path) -> None:
    config = read_config([str(path), "--seed", "5"])
    assert isinstance(config, TrainConfig)
    assert config.seed == 5 and config.out == f"runs/{path.stem}"


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"),
    [("debug", 257, 0.1), ("smollm2-finetune", 49152, 134.5), ("scratch-110m", 32000, 109.5),
     ("llama3-8b-fsdp", 128256, 8030.3)],
)  # fmt: skip
def test_sizes(name: str, vocab_size: int, millions: float) -> None:
    config = read_config([str(REPOSITORY / "configs" / f"{name}.yaml")])
    with torch.device("meta"):
        model = make_model(config, vocab_size)
    assert config.data.seq_len <= model.config.max_seq_len
    assert model.config.num_parameters() / 1e6 == pytest.approx(millions, abs=0.06)
