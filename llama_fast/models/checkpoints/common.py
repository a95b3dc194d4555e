"""Code shared by all checkpoint formats: names, shapes, and building a model without extra copies.

A loader describes its file by a :class:`LlamaConfig` and a dict of :class:`StoredTensor`, which
read nothing yet. :func:`build` compares names and shapes with those of a model on the meta device,
and then reads the tensors into it one by one.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_fast._reading import checked_int
from llama_fast._reading import read_json as read_untrusted_json
from llama_fast.tokenizers import Tokenizer, TokenizerError
from llama_fast.tokenizers.base import MAX_VOCAB_SIZE

from ..config import Llama3RopeScaling, LlamaConfig
from ..llama import LLaMA, rope_frequencies
from ..uninitialized import uninitialized


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or of a kind that this package does not read."""


@dataclass(frozen=True)
class StoredTensor:
    """The shape of a tensor in a file, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def weight_names(config: LlamaConfig, names: Mapping[str, str]) -> dict[str, str]:
    """Map the model's parameter names to a format's, for all layers.

    ``names`` maps modules of the model to those of the format, with ``{i}`` for the layer, as in
    ``"layers.{i}.attention.q_proj": "blk.{i}.attn_q"``. Both sides get ``.weight`` appended.
    """
    expanded = {}
    for ours, theirs in names.items():
        if ours == "head" and config.tie_embeddings:
            continue
        for i in range(config.num_layers if "{i}" in ours else 1):
            expanded[f"{ours.format(i=i)}.weight"] = f"{theirs.format(i=i)}.weight"
    return expanded


def build(
    path: Path,
    config: LlamaConfig,
    names: Mapping[str, str],
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype | None,
    interleaved: bool,
) -> LLaMA:
    """Build a model with the weights of a checkpoint, in evaluation mode.

    Args:
        path: path of the checkpoint, for messages.
        config: configuration of the model.
        names: module of the model -> module of the format, as for :func:`weight_names`.
        tensors: the checkpoint's tensors by their names in it.
        dtype: dtype of the model; None: that of the stored embedding.
        interleaved: whether the rows of the query and key projections are stored in the order of
            RoPE on interleaved pairs (Meta, llama2.c, GGUF), which is converted to halves.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape.
    """
    config, tensors = _resolve_head(path, config, names, tensors)
    if config.num_layers > len(tensors):  # a damaged number could build billions of layers
        raise CheckpointError(
            f"{path}: expected tensors of {config.num_layers} layers, got {len(tensors)} tensors"
        )
    theirs = weight_names(config, names)
    _compare_names(path, "missing", theirs.values() - tensors.keys())
    _compare_names(path, "unexpected", tensors.keys() - set(theirs.values()))
    model = uninitialized(config, "meta")
    parameters = dict(model.named_parameters())
    for ours, parameter in parameters.items():
        stored, expected = tensors[theirs[ours]], tuple(parameter.shape)
        if stored.shape != expected:
            raise CheckpointError(
                f"{path}: tensor {theirs[ours]!r}: expected shape {expected}, got {stored.shape}"
            )
    weights = {}
    for ours in parameters:
        weight = tensors[theirs[ours]].read()
        if dtype is None:  # the embedding comes first
            dtype = weight.dtype
        if interleaved and ours.endswith(("q_proj.weight", "k_proj.weight")):
            weight = pairs_to_halves(weight, config.head_dim)
        weights[ours] = weight.to(dtype)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _resolve_head(
    path: Path, config: LlamaConfig, names: Mapping[str, str], tensors: Mapping[str, StoredTensor]
) -> tuple[LlamaConfig, Mapping[str, StoredTensor]]:
    """Decide by the stored tensors, not by the configuration, whether the head is tied.

    As in transformers, a tied pair may be stored under either name. If both are stored and differ,
    both are kept, with a warning.
    """
    embedding, head = f"{names['embedding']}.weight", f"{names['head']}.weight"
    if not config.tie_embeddings or head not in tensors:
        return config, tensors
    others = {name: tensor for name, tensor in tensors.items() if name != head}
    stored = tensors[head]
    if embedding not in tensors:
        return config, {embedding: stored, **others}
    if stored.shape == tensors[embedding].shape and torch.equal(
        stored.read(), tensors[embedding].read()
    ):
        return config, others
    warnings.warn(
        f"{path}: the configuration says that {head!r} is {embedding!r}, but the file holds two "
        "different tensors: both are kept, and the head is not tied",
        stacklevel=5,
    )
    return dataclasses.replace(config, tie_embeddings=False), tensors


def config_of(model: LLaMA) -> LlamaConfig:
    """The model's configuration, with `tie_embeddings` as in the model's modules."""
    return dataclasses.replace(model.config, tie_embeddings=model.head is None)


def _compare_names(path: Path, what: str, names: set[str]) -> None:
    if names:
        first, others = min(names), len(names) - 1
        more = f" (and {others} more)" if others else ""
        raise CheckpointError(f"{path}: {what} tensor {first!r}{more}")


def pairs_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key projection (heads * D, E) for RoPE on halves.

    RoPE rotates pairs of a head's elements. In Meta's layout a pair is in rows (2d, 2d + 1) of the
    head, in the model's in rows (d, d + D/2). Attention scores do not change, because q and k are
    reordered alike.
    """
    rows = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def halves_to_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of :func:`pairs_to_halves`."""
    rows = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def weights_of(model: LLaMA, names: Mapping[str, str], *, interleaved: bool) -> dict[str, Tensor]:
    """A model's weights, contiguous, by the names of a format; the inverse of :func:`build`."""
    theirs = weight_names(config_of(model), names)
    weights = {}
    for ours, weight in model.state_dict().items():
        if interleaved and ours.endswith(("q_proj.weight", "k_proj.weight")):
            weight = halves_to_pairs(weight, model.config.head_dim)
        weights[theirs[ours]] = weight.detach().cpu().contiguous()
    if model.head is not None and model.head.weight is model.embedding.weight:
        head = theirs["head.weight"]  # two tensors in a file share no memory
        weights[head] = weights[head].clone()
    return weights


def llama3_scaling(config: LlamaConfig) -> Llama3RopeScaling | None:
    """Llama 3.1's RoPE scaling; if the configuration has GGUF's factors, computed from them.

    All published models have low_freq_factor 1, high_freq_factor 4 and a
    context that is a power of two.
    """
    factors = config.rope_factors
    if factors is None or len(set(factors)) == 1:
        return config.rope_scaling
    plain = dataclasses.replace(config, rope_factors=None)
    expected = torch.tensor(factors, dtype=torch.float64)
    for context in (2**n for n in range(4, 21)):
        scaling = Llama3RopeScaling(max(factors), original_max_position_embeddings=context)
        if torch.allclose(rope_divisors(plain, scaling), expected, rtol=1e-5, atol=0):
            return scaling
    return None


def rope_divisors(config: LlamaConfig, scaling: Llama3RopeScaling) -> Tensor:
    """The divisors of the RoPE frequencies in Llama 3.1's scaling: (D/2,), float64."""
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None)
    return rope_frequencies(plain) / rope_frequencies(scaled)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise CheckpointError, which names the file, if it is not one."""
    try:
        content: dict[str, Any] = read_untrusted_json(path, error=CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    return content


# Larger than in any model. Limits are needed because quantities that depend on a size, such as RoPE
# factors, are computed before the size is compared with the tensors' shapes.
MAX_SIZES = {
    "vocab_size": MAX_VOCAB_SIZE,
    "embed_dim": 1 << 24,
    "num_heads": 1 << 16,
    "num_layers": 1 << 14,
    "num_kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "ffn_dim": 1 << 24,
    "max_seq_len": 1 << 40,
}


def size(path: Path, key: str, value: Any, ours: str) -> int:
    """Return a size from a file; raise CheckpointError, naming file and key, if it is invalid.

    Args:
        path: path of the file.
        key: name of the size in the file.
        value: the value in the file, of any type.
        ours: name of the size in :class:`LlamaConfig`.
    """
    return checked_int(value, f"{path}: {key!r}", maximum=MAX_SIZES[ours], error=CheckpointError)


def head_size(path: Path, embed_dim: int, num_heads: int) -> int:
    """The default head size, E / H."""
    if embed_dim % num_heads:
        raise CheckpointError(
            f"{path}: expected a width that is a multiple of its {num_heads} heads, got {embed_dim}"
        )
    return embed_dim // num_heads


def make_config(path: Path, **fields: Any) -> LlamaConfig:
    """Make a LlamaConfig; raise CheckpointError, which names the file, if a field is invalid."""
    try:
        return LlamaConfig(**fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a Llama model that can be built: {error}") from None


def read_tokenizer(path: Path, read: Callable[[], Tokenizer]) -> Tokenizer | None:
    """Return the checkpoint's tokenizer, or None, with a warning, if it cannot be read."""
    try:
        return read()
    except TokenizerError as error:
        warnings.warn(f"{path}: loaded without its tokenizer: {error}", stacklevel=4)
        return None
