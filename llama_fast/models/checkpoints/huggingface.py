"""Hugging Face folders: ``config.json`` and safetensors, in one file or listed by an index.

Weights are read from safetensors only, which hold no code, and no Python module of a folder is
imported. RoPE is on halves, as in the model, so the rows of q and k keep their order.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llama_fast._extras import lacking
from llama_fast._inside import inside
from llama_fast._reading import checked_positive, no_panics
from llama_fast.tokenizers import Tokenizer, load_tokenizer
from llama_fast.tokenizers.save import save_huggingface

from ..config import Llama3RopeScaling, LlamaConfig
from ..llama import LLaMA
from .common import (
    CheckpointError,
    StoredTensor,
    build,
    config_of,
    head_size,
    llama3_scaling,
    make_config,
    read_json,
    read_tokenizer,
    size,
    weights_of,
)

try:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
except ImportError as error:
    raise ImportError(lacking("Hugging Face folders", "safetensors", "checkpoints")) from error

NAMES = {
    "embedding": "model.embed_tokens",
    "layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.attention.q_proj": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.attention.k_proj": "model.layers.{i}.self_attn.k_proj",
    "layers.{i}.attention.v_proj": "model.layers.{i}.self_attn.v_proj",
    "layers.{i}.attention.o_proj": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.feed_forward_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.feed_forward.gate_proj": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.feed_forward.up_proj": "model.layers.{i}.mlp.up_proj",
    "layers.{i}.feed_forward.down_proj": "model.layers.{i}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
INDEX = "model.safetensors.index.json"


def load(path: Path, dtype: torch.dtype | None) -> tuple[LLaMA, Tokenizer | None]:
    """Load a folder as ``save_pretrained`` writes it; `path` may be one of its safetensors files.

    See ``llama_fast.models.load``.
    """
    folder = path if path.is_dir() else path.parent
    config = read_config(folder / "config.json")
    files = _files(folder) if path.is_dir() else _files_of(path)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            with no_panics(str(file), CheckpointError):
                opened = safe_open(file, framework="pt")
                for name in opened.keys():  # noqa: SIM118 (it is no dict)
                    shape = tuple(opened.get_slice(name).get_shape())
                    tensors[name] = StoredTensor(shape, partial(opened.get_tensor, name))
        except SafetensorError as error:
            raise CheckpointError(f"{file}: truncated or damaged safetensors ({error})") from None
        except OSError as error:
            raise CheckpointError(f"{file}: can't be read ({error})") from None
    # Some old converters stored RoPE tables.
    tensors = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    model = build(folder, config, NAMES, tensors, dtype=dtype, interleaved=False)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).exists():
            return model, read_tokenizer(folder, partial(load_tokenizer, folder / name))
    return model, None


def save(model: LLaMA, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Write ``config.json`` and ``model.safetensors``; see ``llama_fast.models.save``."""
    config, llama3 = config_of(model), llama3_scaling(model.config)
    if config.rope_factors is not None and len(set(config.rope_factors)) > 1 and llama3 is None:
        raise ValueError(
            "model: expected RoPE scaling that config.json can express (none, linear, llama3), "
            "got one factor for each frequency"
        )
    rope: dict[str, Any] | None = None
    if llama3 is not None:
        rope = {"rope_type": "llama3", **vars(llama3)}
    elif config.rope_factors is not None:
        rope = {"rope_type": "linear", "factor": config.rope_factors[0]}
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": str(model.head_weight.dtype).removeprefix("torch."),
    }
    if tokenizer is not None:
        save_huggingface(tokenizer, folder, config.max_seq_len)
        end = tokenizer.eos_id if len(tokenizer.end_ids) < 2 else list(tokenizer.end_ids)
        ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": end}
        _write_json(folder / "generation_config.json", ends)
        fields |= ends
    _write_json(folder / "config.json", fields)
    weights = weights_of(model, NAMES, interleaved=False)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def read_config(path: Path) -> LlamaConfig:
    """The configuration in ``config.json``, as transformers 4 or 5 writes it."""
    fields = read_json(path)

    def get(key: str) -> Any:
        if fields.get(key) is None:
            raise CheckpointError(f"{path}: {key!r} is missing")
        return fields[key]

    def get_size(key: str, ours: str) -> int:
        return size(path, key, get(key), ours)

    def number(key: str, value: Any) -> float:
        return checked_positive(value, f"{path}: {key}", error=CheckpointError)

    expected = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "transformers_weights": None,  # a file that has priority over model.safetensors
    }
    for key, value in expected.items():
        if fields.get(key, value) != value:
            raise CheckpointError(f"{path}: {key!r}: expected {value!r}, got {fields[key]!r}")
    embed_dim = get_size("hidden_size", "embed_dim")
    num_heads = get_size("num_attention_heads", "num_heads")
    if fields.get("head_dim"):
        head_dim = get_size("head_dim", "head_dim")
    else:
        head_dim = head_size(path, embed_dim, num_heads)
    # Version 4 has rope_theta and rope_scaling, version 5 one dict with both.
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{path}: RoPE scaling: expected a JSON object, got {rope!r:.80}")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    scaling, factors = None, None
    try:
        if rope_type == "llama3":
            scaling = Llama3RopeScaling(
                number("RoPE scaling 'factor'", rope["factor"]),
                number("RoPE scaling 'low_freq_factor'", rope["low_freq_factor"]),
                number("RoPE scaling 'high_freq_factor'", rope["high_freq_factor"]),
                size(
                    path,
                    "original_max_position_embeddings",
                    rope["original_max_position_embeddings"],
                    "max_seq_len",
                ),
            )
        elif rope_type == "linear":
            factors = (number("RoPE scaling 'factor'", rope["factor"]),) * (head_dim // 2)
        elif rope_type != "default":
            raise CheckpointError(
                f"{path}: RoPE scaling: expected default, linear or llama3, got {rope_type!r}"
            )
    except KeyError as error:
        raise CheckpointError(f"{path}: RoPE scaling {rope_type!r}: {error} is missing") from None
    except ValueError as error:  # numbers that contradict each other
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: RoPE scaling: {error}") from None
    return make_config(
        path,
        vocab_size=get_size("vocab_size", "vocab_size"),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_layers=get_size("num_hidden_layers", "num_layers"),
        num_kv_heads=get_size("num_key_value_heads", "num_kv_heads")
        if fields.get("num_key_value_heads")
        else num_heads,
        head_dim=head_dim,
        ffn_dim=get_size("intermediate_size", "ffn_dim"),
        max_seq_len=get_size("max_position_embeddings", "max_seq_len"),
        rms_norm_eps=get("rms_norm_eps"),
        rope_theta=number(
            "'rope_theta'", rope.get("rope_theta") or fields.get("rope_theta") or 10000.0
        ),
        rope_scaling=scaling,
        rope_factors=factors,
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
    )


def _files(folder: Path) -> list[Path]:
    """The files that transformers reads: model.safetensors, else those that the index lists."""
    if (folder / "model.safetensors").exists():
        return [inside(folder, "model.safetensors", folder, CheckpointError, links=True)]
    if (folder / INDEX).exists():
        return shards_of(folder / INDEX)
    raise CheckpointError(
        f"{folder}: expected model.safetensors or model.safetensors.index.json, found neither "
        "(weights in pickles, pytorch_model.bin, are not read: convert them with transformers)"
    )


def _files_of(file: Path) -> list[Path]:
    """All files of the model that `file` belongs to: those of its index, or `file` alone."""
    index = file.parent / INDEX
    if file.name != "model.safetensors" and index.exists():
        shards = shards_of(index)
        if file in shards:
            return shards
    return [file]


def shards_of(index: Path) -> list[Path]:
    """The files that an index lists; raise CheckpointError if one is outside its folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: 'weight_map' is missing")
    return sorted({inside(index.parent, name, index, CheckpointError) for name in shards.values()})
