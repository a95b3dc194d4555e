from __future__ import annotations

from pathlib import Path

import pytest

from llama_fast.models import CheckpointError, LlamaConfig, load
from tests.models.peers import SHAPES, save_transformers


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: no such file or folder: .*nothing"):
        load(tmp_path / "nothing")


def test_file_of_no_known_format(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(
        CheckpointError, match=r"notes\.txt: expected a GGUF, .* b'hell', are of none"
    ):
        load(path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json .* params\.json .* found neither"):
        load(tmp_path)


def test_config_beside_a_file_that_has_its_own(tmp_path: Path) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    with pytest.raises(ValueError, match="config: expected None"):
        load(tmp_path, config=LlamaConfig.preset("debug"))
