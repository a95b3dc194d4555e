"""Data to train on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_fast.data import ShardWriter
from tests.paths import data_file


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tinyshakespeare's first 200,000 characters, a speech a document."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    text = data_file("corpora/tinyshakespeare.txt").read_text()[:200_000]
    with ShardWriter(folder, vocab_size=257, tokenizer={"path": "byte"}) as writer:
        for speech in text.split("\n\n"):
            writer.add([256, *speech.encode(), 256])
    return str(folder)


@pytest.fixture
def random_shards(tmp_path: Path) -> str:
    """200 documents of 33 random bytes."""
    g = torch.Generator().manual_seed(0)
    with ShardWriter(tmp_path / "shards", vocab_size=256, tokenizer={}) as writer:
        for _ in range(200):
            writer.add(torch.randint(256, (33,), generator=g).tolist())
    return str(tmp_path / "shards")
