from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from llama_fast import tokenizers
from llama_fast.models import CheckpointError, LlamaConfig, checkpoints, load
from tests.models.peers import SHAPES, save_transformers
from tests.paths import data_file


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path: no such file or folder: .*nothing"):
        load(tmp_path / "nothing")


def test_file_of_no_known_format(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    with pytest.raises(
        CheckpointError, match=r"notes\.txt: expected a GGUF, .* got one that begins with b'hell'"
    ):
        load(path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json .* params\.json .* found neither"):
        load(tmp_path)


def test_config_beside_a_file_that_has_its_own(tmp_path: Path) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    with pytest.raises(ValueError, match="config: expected None"):
        load(tmp_path, config=LlamaConfig.preset("debug"))


def test_dtype_by_name(tmp_path: Path) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    named, given = load(tmp_path, "bfloat16")[0], load(tmp_path, torch.bfloat16)[0]
    assert named.head_weight.dtype == torch.bfloat16
    assert torch.equal(named.head_weight, given.head_weight)
    with pytest.raises(ValueError, match=r"dtype: expected one of auto, float32, .* got 'bf16'"):
        load(tmp_path, "bf16")


def test_formats_that_need_a_package_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, module in (("gguf", "gguf"), ("safetensors", "huggingface")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, f"llama_fast.models.checkpoints.{module}", raising=False)
        monkeypatch.delattr(checkpoints, module, raising=False)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        ImportError, match=r"the gguf package: pip install 'llama_fast\[checkpoints\]'"
    ):
        load(tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ImportError, match=r"the safetensors package: pip install"):
        load(tmp_path)


def test_a_missing_tokenizer_package_costs_a_warning_only(monkeypatch: pytest.MonkeyPatch) -> None:
    path = data_file("checkpoints/stories260k/stories260K.bin")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.delitem(sys.modules, "llama_fast.tokenizers.spm", raising=False)
    monkeypatch.delattr(tokenizers, "spm", raising=False)
    with pytest.warns(UserWarning, match=r"without its tokenizer: .* sentencepiece package: pip"):
        model, tokenizer = load(path)
    assert tokenizer is None
    assert model.config == LlamaConfig.preset("stories260k")
