"""Hugging Face folders as transformers writes them, damaged ones, and those that we write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from llama_fast.models import CheckpointError, LLaMA, LlamaConfig, load, save
from tests.models.peers import SHAPES, save_transformers, transformers_model


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


@torch.no_grad()
def test_sharded_folder(tmp_path: Path) -> None:
    config = SHAPES["gqa-tied"]
    save_transformers(config, tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    model, tokenizer = load(tmp_path)
    assert tokenizer is None
    assert not model.training
    expected, _ = load(save_transformers(config, tmp_path / "whole"))
    for name, weight in expected.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name


def test_a_safetensors_file_stands_for_its_folder(tmp_path: Path) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    assert load(tmp_path / "model.safetensors")[0].config == SHAPES["mha-untied"]


@pytest.mark.parametrize("shape", ["llama3-rope", "linear-rope", "mha-untied"])
def test_config_of_transformers_4(tmp_path: Path, shape: str) -> None:
    config = SHAPES[shape]
    save_transformers(config, tmp_path)
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    theta = rope.pop("rope_theta")
    if rope["rope_type"] == "default":
        rope = None
    elif rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")  # older still
    edit_config(tmp_path, rope_parameters=None, rope_theta=theta, rope_scaling=rope)
    assert load(tmp_path)[0].config == config


def test_dtype(tmp_path: Path) -> None:
    transformers_model(SHAPES["gqa-tied"]).bfloat16().save_pretrained(tmp_path)
    assert load(tmp_path)[0].embedding.weight.dtype == torch.bfloat16
    model, _ = load(tmp_path, dtype=torch.float64)
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_what_we_save_transformers_loads(tmp_path: Path, shape: str) -> None:
    config = SHAPES[shape]
    model, _ = load(save_transformers(config, tmp_path / "theirs"))
    save(model, tmp_path / "ours")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    tokens = torch.randint(config.vocab_size, (1, 16))
    assert torch.equal(theirs(tokens).logits, transformers_model(config)(tokens).logits)
    again, _ = load(tmp_path / "ours")
    assert again.config == config


def test_factors_that_config_json_cannot_hold(tmp_path: Path) -> None:
    model = LLaMA(LlamaConfig(8, 8, 2, 1, rope_factors=(2.0, 1.0)))
    with pytest.raises(ValueError, match="one factor for each frequency"):
        save(model, tmp_path)


def test_tokenizer_json(tmp_path: Path) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "yes": 2, "no": 3}, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    _, loaded = load(tmp_path)
    assert loaded is not None
    assert loaded.encode("yes no") == [2, 3]
    assert (loaded.bos_id, loaded.eos_id) == (0, 1)


def test_damaged_tokenizer_costs_a_warning_not_the_model(tmp_path: Path) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.warns(UserWarning, match="loaded without its tokenizer: .*not a tokenizer.json"):
        _, tokenizer = load(tmp_path)
    assert tokenizer is None


@pytest.mark.parametrize("kept", [0, 4, 200, 5000, -1])
def test_truncated_weights(tmp_path: Path, kept: int) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or damaged"):
        load(tmp_path)


def test_errors_name_file_and_tensor(tmp_path: Path) -> None:
    save_transformers(SHAPES["gqa-tied"], tmp_path)
    path = tmp_path / "model.safetensors"
    # Copies: those that are read are mapped from the file, which is written again below.
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}

    def rejects(message: str) -> None:
        save_file(weights, path)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)

    name = "model.layers.1.self_attn.k_proj.weight"
    k_proj = weights.pop(name)
    rejects(rf"{tmp_path}: missing tensor '{name}'")
    weights[name] = k_proj[:8].clone()
    rejects(rf"tensor '{name}': expected shape \(16, 48\), got \(8, 48\)")
    weights[name] = k_proj
    weights["model.layers.1.self_attn.k_proj.bias"] = torch.zeros(16)
    rejects(r"unexpected tensor 'model\.layers\.1\.self_attn\.k_proj\.bias'")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "'model_type': expected 'llama', got 'qwen2'"),
        ({"hidden_act": "gelu"}, "'hidden_act': expected 'silu', got 'gelu'"),
        ({"attention_bias": True}, "'attention_bias': expected False, got True"),
        ({"transformers_weights": "a.safetensors"}, "expected None, got 'a.safetensors'"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"num_key_value_heads": 3}, "num_kv_heads: expected a divisor of num_heads = 4, got 3"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            "expected default, linear or llama3, got 'yarn'",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            "RoPE scaling 'llama3': 'factor' is missing",
        ),
    ],
)
def test_configs_that_are_no_llama(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        load(tmp_path)


def test_incomplete_folders(tmp_path: Path) -> None:
    save_transformers(SHAPES["mha-untied"], tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: 'weight_map' is missing"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"found neither .*pickles.* are not read"):
        load(tmp_path)
