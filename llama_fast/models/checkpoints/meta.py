"""Meta's own checkpoints: ``params.json`` and ``consolidated.00.pth``, ``consolidated.01.pth``...

A large model is split over several files, one per GPU; each holds a slice of every matrix. torch
reads the pickles with ``weights_only=True``, so no code in them is executed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_fast._inside import inside
from llama_fast._reading import checked_positive
from llama_fast.tokenizers import Tokenizer, load_tokenizer
from llama_fast.tokenizers.save import model_file

from ..config import Llama3RopeScaling, LlamaConfig, preset_names
from ..llama import LLaMA
from .common import (
    CheckpointError,
    StoredTensor,
    build,
    config_of,
    llama3_scaling,
    make_config,
    read_json,
    read_tokenizer,
    size,
    weights_of,
)

NAMES = {
    "embedding": "tok_embeddings",
    "layers.{i}.attention_norm": "layers.{i}.attention_norm",
    "layers.{i}.attention.q_proj": "layers.{i}.attention.wq",
    "layers.{i}.attention.k_proj": "layers.{i}.attention.wk",
    "layers.{i}.attention.v_proj": "layers.{i}.attention.wv",
    "layers.{i}.attention.o_proj": "layers.{i}.attention.wo",
    "layers.{i}.feed_forward_norm": "layers.{i}.ffn_norm",
    "layers.{i}.feed_forward.gate_proj": "layers.{i}.feed_forward.w1",
    "layers.{i}.feed_forward.up_proj": "layers.{i}.feed_forward.w3",
    "layers.{i}.feed_forward.down_proj": "layers.{i}.feed_forward.w2",
    "norm": "norm",
    "head": "output",
}

# Buffers of Meta's model that are not weights: masks and RoPE tables.
BUFFERS = re.compile(r"(layers\.\d+\.attention\.(mask|cache_k|cache_v)|rope\.freqs|freqs_cis)")


def load(
    path: Path, dtype: torch.dtype | None, config: LlamaConfig | None
) -> tuple[LLaMA, Tokenizer | None]:
    """Load a ``.pth`` file, or a folder of them; see ``llama_fast.models.load``."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        files = [
            inside(path, file.name, path, CheckpointError, links=True)
            for file in sorted(path.glob("consolidated.*.pth"))
        ]
        if not files:
            raise CheckpointError(f"{path}: expected consolidated.*.pth beside params.json")
    else:
        files = [path]
    shards = [read_shard(file) for file in files]
    if config is None:
        config = read_config(folder / "params.json", shards)
    names = dict.fromkeys(name for shard in shards for name in shard)
    tensors = {name: _join(name, path, shards, config) for name in names}
    model = build(path, config, NAMES, tensors, dtype=dtype, interleaved=True)
    if not (folder / "tokenizer.model").exists():
        return model, None
    return model, read_tokenizer(path, partial(load_tokenizer, folder / "tokenizer.model"))


def save(model: LLaMA, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Write ``params.json``, ``consolidated.00.pth`` and, if the tokenizer has that form,
    ``tokenizer.model``; see ``llama_fast.models.save``."""
    config = config_of(model)
    params = write_config(config)
    weights = weights_of(model, NAMES, interleaved=True)
    for name, weight in weights.items():
        if weight.untyped_storage().nbytes() > weight.nbytes:  # torch.save writes all of it
            weights[name] = weight.clone()
    if config.tie_embeddings:  # written out, as Meta does; torch stores it once
        weights["output.weight"] = weights["tok_embeddings.weight"]
    (folder / "params.json").write_text(json.dumps(params) + "\n", encoding="utf-8")
    torch.save(weights, folder / "consolidated.00.pth")
    content = None if tokenizer is None else model_file(tokenizer)
    if content is not None:
        (folder / "tokenizer.model").write_bytes(content)


def write_config(config: LlamaConfig) -> dict[str, Any]:
    """The fields of ``params.json``. Meta's code accepts no others, so max_seq_len is not stored.

    Raises:
        ValueError: the format cannot express the head size or RoPE scaling.
    """
    scaling = llama3_scaling(config)
    if config.head_dim * config.num_heads != config.embed_dim:
        raise ValueError(
            "model: expected a head size of embed_dim / num_heads = "
            f"{config.embed_dim / config.num_heads:g}, as params.json has no field for it, got "
            f"{config.head_dim}"
        )
    others = Llama3RopeScaling()
    if (config.rope_factors is not None and scaling is None) or (
        scaling is not None and dataclasses.replace(scaling, factor=others.factor) != others
    ):
        raise ValueError(
            "model: expected the RoPE scaling of Llama 3.1 or none, as params.json has no field "
            "for others"
        )
    params = {
        "dim": config.embed_dim,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "norm_eps": config.rms_norm_eps,
        **_ffn_fields(config),
    }
    if scaling is not None or config.rope_theta != 10000.0:  # Llama 2's code knows no other theta
        params["rope_theta"] = config.rope_theta
    if scaling is not None:
        params["use_scaled_rope"] = True
        if scaling.factor != _rope_factor(config.embed_dim, config.num_layers):
            params["rope_scaling_factor"] = scaling.factor
    return params


def _ffn_dim(embed_dim: int, multiplier: float | None, multiple: int) -> int:
    """Width of the feed-forward layer; github.com/meta-llama/llama-models, class FeedForward."""
    width = int(int(2 * 4 * embed_dim / 3) * (multiplier or 1))
    return -(-width // multiple) * multiple


def _ffn_fields(config: LlamaConfig) -> dict[str, Any]:
    """Arguments of :func:`_ffn_dim` that give the width; Meta's own if they do."""
    for multiple in (256, 1024, 4096):
        for multiplier in (None, 1.2, 1.3, 1.4, 1.5):
            if _ffn_dim(config.embed_dim, multiplier, multiple) == config.ffn_dim:
                fields = {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
                return {"multiple_of": multiple, **fields}
    # The middle of the interval that truncates to the width, so that rounding does not matter.
    multiplier = (config.ffn_dim + 0.5) / int(2 * 4 * config.embed_dim / 3)
    return {"multiple_of": 1, "ffn_dim_multiplier": multiplier}


def _rope_factor(embed_dim: int, num_layers: int) -> float:
    """The RoPE factor, which params.json omits: 32 for the two models of Llama 3.2, else 8."""
    return 32.0 if (embed_dim, num_layers) in ((2048, 16), (3072, 28)) else 8.0


def read_shard(path: Path) -> dict[str, Tensor]:
    """Read the weights in one ``.pth`` file, without buffers and without executing code in it.

    Raises:
        CheckpointError: the file is damaged, holds anything but named tensors, or is a pickle that
            would run code.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        # A zip archive is memory-mapped, so only the tensors in use are read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle can raise anything
        if unsafe := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: refused: this pickle asks for {unsafe[1]}, which is code and not a "
                "weight; nothing of it was executed"
            ) from None
        first_line = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: truncated or damaged, or not a file of weights ({first_line})"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path}: expected a dict of tensors by name, got something else")
    return {name: tensor for name, tensor in content.items() if not BUFFERS.fullmatch(name)}


def read_config(path: Path, shards: list[dict[str, Tensor]]) -> LlamaConfig:
    """The configuration in ``params.json``; missing fields are derived from the shapes."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: missing: the weights do not tell the number of heads; put it beside the "
            f".pth or pass config= (presets: {', '.join(preset_names())})"
        )
    params = read_json(path)

    def get(key: str) -> Any:
        if params.get(key) is None:
            raise CheckpointError(f"{path}: {key!r} is missing")
        return params[key]

    def number(key: str, default: float) -> float:
        return checked_positive(params.get(key, default), f"{path}: {key!r}", error=CheckpointError)

    embedding = shards[0].get("tok_embeddings.weight")
    if embedding is None or embedding.dim() != 2:
        raise CheckpointError(f"{path.parent}: missing tensor 'tok_embeddings.weight'")
    embed_dim = size(path, "dim", get("dim"), "embed_dim")
    num_layers = size(path, "n_layers", get("n_layers"), "num_layers")
    num_heads = size(path, "n_heads", get("n_heads"), "num_heads")
    vocab_size = params.get("vocab_size", -1)
    if vocab_size != -1:
        size(path, "vocab_size", vocab_size, "vocab_size")
    else:  # Llama 2 took it from the tokenizer
        split_by_rows = embedding.shape[1] == embed_dim
        vocab_size = embedding.shape[0] * (len(shards) if split_by_rows else 1)
    multiplier = None
    if params.get("ffn_dim_multiplier") is not None:
        multiplier = min(number("ffn_dim_multiplier", 1.0), 1e9)  # still too large for a size
    multiple = size(path, "multiple_of", params.get("multiple_of", 256), "ffn_dim")
    ffn_dim = _ffn_dim(embed_dim, multiplier, multiple)
    scaling = None
    if params.get("use_scaled_rope"):
        factor = number("rope_scaling_factor", _rope_factor(embed_dim, num_layers))
        scaling = Llama3RopeScaling(factor)
    output = shards[0].get("output.weight")
    return make_config(
        path,
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_layers=num_layers,
        num_kv_heads=size(path, "n_kv_heads", params.get("n_kv_heads") or num_heads, "num_heads"),
        ffn_dim=size(path, "ffn_dim_multiplier", ffn_dim, "ffn_dim"),
        max_seq_len=131072 if scaling else (8192 if params.get("rope_theta") else 4096),
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=number("rope_theta", 10000.0),
        rope_scaling=scaling,
        # Meta stores a tied head, too: one storage under two names
        tie_embeddings=output is None or output.data_ptr() == embedding.data_ptr(),
    )


def _join(
    name: str, path: Path, shards: list[dict[str, Tensor]], config: LlamaConfig
) -> StoredTensor:
    """Join the slices of one tensor."""
    slices = [shard[name] for shard in shards if name in shard]
    if len(slices) < len(shards):
        raise CheckpointError(f"{path}: tensor {name!r}: missing in some of the .pth files")
    if len(slices) == 1 or name.endswith("norm.weight"):  # norms are the same in every file
        return StoredTensor(tuple(slices[0].shape), lambda: slices[0])
    # A matrix split by its output is sliced by rows, one split by its input by columns.
    by_columns = name.endswith(("wo.weight", "w2.weight"))
    if name == "tok_embeddings.weight":  # Llama 2 split columns, Llama 3 rows
        by_columns = slices[0].shape[0] == config.vocab_size
    dim = 1 if by_columns else 0
    shape = list(slices[0].shape)
    shape[dim] = sum(part.shape[dim] for part in slices)
    return StoredTensor(tuple(shape), partial(torch.cat, slices, dim=dim))
