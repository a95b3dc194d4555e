"""A model's folder brings Python: it runs only where a person says so, and nobody is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llama_fast
from llama_fast.cli.main import main
from llama_fast.eval.harness import HarnessModel
from llama_fast.eval.suite.toxigen import ToxigenGeneration
from llama_fast.integrations.any_model import check_transformers, load_any
from llama_fast.models.checkpoints.common import CheckpointError

CODE = """
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM
Path({marker!r}).write_text("run")

class OwnConfig(Qwen2Config):
    model_type = "own"

class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What the model's Python leaves behind."""
    return tmp_path / "marker"


@pytest.fixture
def folder(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose `auto_map` names Python beside it."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    # Whoever is asked says yes.
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path / "got")
    change(tmp_path / "got", model_type="own", auto_map={
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoModelForSequenceClassification": "own.OwnModel",
    })  # fmt: skip
    (tmp_path / "got/own.py").write_text(CODE.format(marker=str(marker)))
    return tmp_path / "got"


def change(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_code_does_not_run(folder: Path, marker: Path) -> None:
    for load in (
        lambda: load_any(str(folder), "byte", device="cpu"),
        lambda: HarnessModel(str(folder), tokenizer="byte", device="cpu"),
        lambda: HarnessModel(str(folder), "byte", device="cpu", trust_remote_code="no"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"brings Python code of its own.*--trust-remote-code"):
            load()
    with pytest.raises(ValueError, match="trust_remote_code"):
        llama_fast.AutoModelForCausalLM.from_pretrained(folder)
    assert not marker.exists()


def test_code_runs_where_it_is_trusted(folder: Path, marker: Path) -> None:
    model, _ = load_any(str(folder), "byte", device="cpu", trust_remote_code=True)
    assert type(model).__name__ == "OwnModel" and marker.read_text() == "run"


def test_code_of_a_known_architecture_does_not_run(folder: Path, marker: Path) -> None:
    """transformers' own class is taken then."""
    change(folder, model_type="qwen2")
    model, _ = load_any(str(folder), "byte", device="cpu")
    assert type(model).__module__.startswith("transformers.models.qwen2") and not marker.exists()


def test_the_command(folder: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder.parent / "hub/allenai/openbookqa/main"
    data.mkdir(parents=True)
    choices = {"label": list("ABCD"), "text": list("wxyz")}
    row = {"id": "1", "question_stem": "a", "choices": choices, "answerKey": "A"}
    (data / "test.jsonl").write_text(json.dumps(row))
    options = ["--tokenizer", "byte", "--tasks", "openbookqa", "--device", "cpu"]
    out, hub = str(folder.parent / "out"), str(folder.parent)
    command = ["eval", str(folder), *options, "--data-dir", hub, "--out", out]
    assert main(command) == 2
    assert "--trust-remote-code" in capsys.readouterr().err and not marker.exists()
    assert main([*command, "--trust-remote-code"]) == 0 and marker.exists()


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_that_trusts_itself(folder: Path, marker: Path, nested: bool) -> None:
    """CVE-2026-5241: LightGlue's configuration took the flag from the file, before 5.5.0."""
    trust = {"trust_remote_code": True, "_name_or_path": str(folder), "model_type": "own"}
    fields = {"keypoint_detector_config": trust} if nested else trust
    change(folder, **{**fields, "model_type": "lightglue"})
    with pytest.raises(ValueError, match="brings Python code of its own"):
        load_any(str(folder), "byte", device="cpu")
    assert not marker.exists()


def test_the_classifier(folder: Path, marker: Path) -> None:
    task = ToxigenGeneration.__new__(ToxigenGeneration)
    task._config = type("Config", (), {"metadata": {"classifier": str(folder)}})()
    with pytest.raises(ValueError, match=r"toxigen_classifier: .* is not a classifier"):
        _ = task.classifier
    assert not marker.exists()


def test_weights_in_pickles_are_not_read(folder: Path) -> None:
    change(folder, model_type="qwen2")
    model, _ = load_any(str(folder), "byte", device="cpu")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_any(str(folder), "byte", device="cpu")


def test_weights_named_elsewhere(folder: Path) -> None:
    change(folder, model_type="qwen2", transformers_weights="../private.safetensors")
    with pytest.raises(ValueError, match="leads out of the folder"):
        load_any(str(folder), "byte", device="cpu")
    change(folder, transformers_weights=None)
    index = {"weight_map": {"model.norm.weight": "../private.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        load_any(str(folder), "byte", device="cpu")


def test_a_transformers_with_known_holes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(folder, model_type="qwen2")
    for version in ("4.57.1", "5.3.0", "5.4.0.dev0"):
        monkeypatch.setattr("transformers.__version__", version)
        with pytest.raises(ImportError, match=r"transformers: expected 5\.5 or later"):
            load_any(str(folder), "byte", device="cpu")
    for version in ("5.5.0", "5.23.1", "6.0.0rc1"):
        monkeypatch.setattr("transformers.__version__", version)
        check_transformers()
