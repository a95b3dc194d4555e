"""Meta's .pth files: a real one with random weights, split ones, damaged ones, hostile ones."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_fast.models import CheckpointError, Llama3RopeScaling, LlamaConfig, load
from llama_fast.models.checkpoints.meta import read_config
from tests.models import oracle
from tests.models.peers import SHAPES, check_logits, transformers_model
from tests.paths import data_file

META_TINY = LlamaConfig(512, 64, 8, 5, ffn_dim=172)
PARAMS = {"dim": 64, "n_layers": 5, "n_heads": 8, "multiple_of": 4, "norm_eps": 1e-5}


def meta_names(config: LlamaConfig) -> dict[str, str]:
    """Meta's names of the weights and Hugging Face's."""
    names = {
        "tok_embeddings": "model.embed_tokens",
        "norm": "model.norm",
        "output": "model.embed_tokens" if config.tie_embeddings else "lm_head",
    }
    modules = {f"attention.w{n}": f"self_attn.{n}_proj" for n in "qkvo"} | {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    for i in range(config.num_layers):
        for meta, hugging_face in modules.items():
            names[f"layers.{i}.{meta}"] = f"model.layers.{i}.{hugging_face}"
    return {f"{meta}.weight": f"{theirs}.weight" for meta, theirs in names.items()}


def write(
    folder: Path, config: LlamaConfig, shards: list[dict[str, Tensor]], **params: object
) -> Path:
    folder.mkdir(exist_ok=True)
    fields = {
        "dim": config.embed_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        # 8/3 E times the multiplier is rounded down, then up to the multiple
        "ffn_dim_multiplier": (config.ffn_dim + 0.5) / int(8 * config.embed_dim / 3),
        "multiple_of": 1,
        **params,
    }
    (folder / "params.json").write_text(json.dumps(fields))
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02}.pth")
    return folder


def interleaved_weights(config: LlamaConfig) -> dict[str, Tensor]:
    """A random model's weights by Meta's names, with query and key rows in Meta's order."""
    theirs = transformers_model(config).state_dict()
    weights = {meta: theirs[name].clone() for meta, name in meta_names(config).items()}
    order = torch.arange(config.head_dim).view(2, -1).T.flatten()  # 0, D/2, 1, D/2 + 1, ...
    for name, weight in weights.items():
        if name.endswith(("wq.weight", "wk.weight")):
            heads = weight.view(-1, config.head_dim, config.embed_dim)
            weights[name] = heads[:, order].reshape(weight.shape)
    if config.tie_embeddings:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


@pytest.fixture
def meta_tiny(tmp_path: Path) -> Path:
    """The real file, with the params.json that fits it."""
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    path = tmp_path / "consolidated.00.pth"
    path.symlink_to(data_file("checkpoints/meta_tiny/demo_rand_params.pth"))
    return path


@torch.no_grad()
def test_real_file_against_the_oracle(meta_tiny: Path) -> None:
    model, tokenizer = load(meta_tiny, dtype=torch.float64)
    # Llama 2's context length: the file doesn't say it
    assert model.config == LlamaConfig(512, 64, 8, 5, ffn_dim=172, max_seq_len=4096)
    assert tokenizer is None
    stored = torch.load(meta_tiny, weights_only=True)
    assert sum(name.endswith("attention.mask") for name in stored) == 5  # no weights: left out
    weights = {name: stored[meta] for meta, name in meta_names(META_TINY).items()}
    tokens = torch.arange(40).view(2, 20) * 11
    truth = oracle.logits(META_TINY, weights, tokens, interleaved=True)
    torch.testing.assert_close(model(tokens), truth)


def test_config_may_be_given_instead_of_params_json() -> None:
    path = data_file("checkpoints/meta_tiny/demo_rand_params.pth")
    model, _ = load(path, config=META_TINY)
    assert model.config == META_TINY
    with pytest.raises(CheckpointError, match=r"params\.json: missing: .* pass config="):
        load(path)


@pytest.mark.parametrize("shape", ["mha-untied", "gqa-tied"])
def test_logits_are_transformers(tmp_path: Path, shape: str) -> None:
    config = SHAPES[shape]
    model, _ = load(write(tmp_path, config, [interleaved_weights(config)]))
    assert model.config.tie_embeddings == config.tie_embeddings
    check_logits(model, config)


@pytest.mark.parametrize("embedding_dim", [0, 1], ids=["llama3", "llama2"])
def test_files_split_over_gpus(tmp_path: Path, embedding_dim: int) -> None:
    config = LlamaConfig(96, 48, 4, 2, ffn_dim=80, max_seq_len=8192)
    weights = interleaved_weights(config)
    by_columns = ("wo.weight", "w2.weight")
    shards: list[dict[str, Tensor]] = [{}, {}]
    for name, weight in weights.items():
        dim = 1 if name.endswith(by_columns) else 0
        if name == "tok_embeddings.weight":  # Llama 2 split its columns, Llama 3 its rows
            dim = embedding_dim
        halves = (weight, weight) if "norm" in name else weight.chunk(2, dim)
        for shard, half in zip(shards, halves, strict=True):
            shard[name] = half.clone()
    whole, _ = load(write(tmp_path / "whole", config, [weights]))
    split, _ = load(write(tmp_path / "split", config, shards))
    assert split.config == whole.config == config
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, split.get_parameter(name)), name


@pytest.mark.parametrize(
    ("sizes", "factor"), [((2048, 16), 32.0), ((3072, 28), 32.0), ((4096, 32), 8.0)]
)
def test_llama_3_1_and_3_2_scale_rope(
    tmp_path: Path, sizes: tuple[int, int], factor: float
) -> None:
    dim, n_layers = sizes
    path = tmp_path / "params.json"
    fields = {"dim": dim, "n_layers": n_layers, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5}
    fields |= {"rope_theta": 500000.0, "use_scaled_rope": True, "ffn_dim_multiplier": 1.3}
    fields |= {"multiple_of": 1024, "vocab_size": 128256}
    path.write_text(json.dumps(fields))
    config = read_config(path, [{"tok_embeddings.weight": torch.empty(128256, dim, device="meta")}])
    assert config.rope_scaling == Llama3RopeScaling(factor)
    assert config.max_seq_len == 131072
    if dim == 4096:
        assert config.ffn_dim == 14336  # Llama 3.1 8B's, from its ffn_dim_multiplier


class Evil:
    """Pickled, it becomes a call that creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("format", ["zip", "legacy torch", "pickle", "pickle protocol 0"])
def test_pickle_with_code_is_refused(tmp_path: Path, format: str) -> None:
    path, target = tmp_path / "consolidated.00.pth", tmp_path / "executed"
    content = {"tok_embeddings.weight": torch.zeros(4, 4), "evil": Evil(target)}
    if format == "zip":
        torch.save(content, path)
    elif format == "legacy torch":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if format.endswith("0") else 4))
    with pytest.raises(
        CheckpointError, match=r"consolidated\.00\.pth: (refused|truncated or damaged)"
    ):
        load(path, config=META_TINY)
    assert not target.exists()
    if format in ("zip", "legacy torch"):
        with pytest.raises(CheckpointError, match=r"refused: this pickle asks for \w+\.system"):
            load(path, config=META_TINY)
    # The file is hostile indeed: without the safeguard its code runs.
    if format.startswith("pickle"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 10_000, -1])
def test_truncated_file(meta_tiny: Path, kept: int) -> None:
    content = meta_tiny.read_bytes()
    meta_tiny.unlink()
    meta_tiny.write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth: truncated or damaged"):
        load(meta_tiny)


def test_not_a_dict_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    for content in (torch.zeros(3), {"a": 1}, {1: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="expected a dict of tensors by name"):
            load(path, config=META_TINY)


def test_errors_name_file_and_tensor(tmp_path: Path) -> None:
    config = SHAPES["mha-untied"]
    weights = interleaved_weights(config)

    def rejects(message: str, **params: object) -> None:
        with pytest.raises(CheckpointError, match=message):
            load(write(tmp_path, config, [weights], **params))

    wq = weights["layers.1.attention.wq.weight"]
    weights["layers.1.attention.wq.weight"] = wq[:-1]
    rejects(
        f"{tmp_path}: tensor 'layers.1.attention.wq.weight': "
        r"expected shape \(48, 48\), got \(47, 48\)"
    )
    weights["layers.1.attention.wq.weight"] = wq
    weights["layers.1.attention.wx.weight"] = wq
    rejects("unexpected tensor 'layers.1.attention.wx.weight'")
    del weights["layers.1.attention.wx.weight"]
    rejects(r"missing tensor 'layers.2.*' \(and 8 more\)", n_layers=3)
    rejects(r"params\.json: 'dim' is missing", dim=None)
    rejects(r"params\.json: 'n_heads': expected an integer .* got 'four'", n_heads="four")
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"params\.json: not JSON"):
        load(tmp_path)
    for file in tmp_path.glob("*.pth"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"expected consolidated"):
        load(tmp_path)


def test_a_weight_missing_in_one_of_two_files(tmp_path: Path) -> None:
    weights = interleaved_weights(SHAPES["mha-untied"])
    other = {name: weight for name, weight in weights.items() if "norm" in name}
    with pytest.raises(CheckpointError, match=r"missing in some of the \.pth files"):
        load(write(tmp_path, SHAPES["mha-untied"], [weights, other]))
