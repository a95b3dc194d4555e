"""What all checkpoint formats share: tensors by name, checked shapes, a model built without copies.

A loader describes its file as a :class:`LlamaConfig` and a dict of :class:`Stored` tensors, which
nothing has read yet. :func:`build` compares names and shapes with the model's and reads them one
by one into a model that was made without memory of its own (on the meta device).
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
from llama_fast._reading import read_json as strangers_json
from llama_fast.tokenizers import Tokenizer, TokenizerError
from llama_fast.tokenizers.base import MOST_TOKENS

from ..config import Llama3RopeScaling, LlamaConfig
from ..llama import LLaMA, rope_frequencies


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or not one that this package reads."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def weight_names(config: LlamaConfig, names: Mapping[str, str]) -> dict[str, str]:
    """The model's parameter names -> a format's, for all layers.

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
    tensors: Mapping[str, Stored],
    *,
    dtype: torch.dtype | None,
    interleaved: bool,
) -> LLaMA:
    """A model with the weights of a checkpoint, in evaluation mode.

    Args:
        path: of the checkpoint, for messages.
        config: of the model.
        names: module of the model -> the format's, as :func:`weight_names` takes it.
        tensors: what the checkpoint holds, by its own names.
        dtype: of the model; None takes that of the stored embedding.
        interleaved: the rows of the query and key projections are in the order that RoPE on
            interleaved pairs needs (Meta's, llama2.c's, GGUF's); the model needs halves.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape.
    """
    config, tensors = _settle_head(path, config, names, tensors)
    if config.num_layers > len(tensors):  # a damaged number of layers could take for ever
        raise CheckpointError(
            f"{path}: expected tensors of {config.num_layers} layers, got {len(tensors)} tensors"
        )
    theirs = weight_names(config, names)
    _compare_names(path, "missing", theirs.values() - tensors.keys())
    _compare_names(path, "unexpected", tensors.keys() - set(theirs.values()))
    with torch.device("meta"):
        model = LLaMA(config)
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


def _settle_head(
    path: Path, config: LlamaConfig, names: Mapping[str, str], tensors: Mapping[str, Stored]
) -> tuple[LlamaConfig, Mapping[str, Stored]]:
    """What a tied head is by the tensors: they decide where the configuration says otherwise.

    As transformers has it: of a tied pair, either may be the one that is stored; where both are,
    and differ, both are kept, and a warning says so.
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
    """The model's configuration, with the head tied or not as the model's modules have it."""
    return dataclasses.replace(model.config, tie_embeddings=model.head is None)


def _compare_names(path: Path, what: str, names: set[str]) -> None:
    if names:
        first, others = min(names), len(names) - 1
        more = f" (and {others} more)" if others else ""
        raise CheckpointError(f"{path}: {what} tensor {first!r}{more}")


def pairs_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of a query or key projection (heads * D, E) for RoPE on halves.

    RoPE turns pairs of a head's numbers. Meta's layout puts a pair at rows (2d, 2d + 1) of the
    head, the model's at (d, d + D/2). Scores are the same, since q and k move together.
    """
    rows = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def halves_to_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """The reverse of :func:`pairs_to_halves`."""
    rows = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def weights_of(model: LLaMA, names: Mapping[str, str], *, interleaved: bool) -> dict[str, Tensor]:
    """A model's weights by a format's names, contiguous; the reverse of :func:`build`."""
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
    """Llama 3.1's RoPE scaling, also if it is given as the factors that it leads to.

    GGUF stores these. All published models have low_freq_factor 1, high_freq_factor 4 and a
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
    """What Llama 3.1's scaling divides the RoPE frequencies by: (D/2,), float64."""
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None)
    return rope_frequencies(plain) / rope_frequencies(scaled)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file, or a CheckpointError that names the file."""
    try:
        content: dict[str, Any] = strangers_json(path, error=CheckpointError)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    return content


# More than any model has. What is computed from a size, such as a factor for each pair of a head's
# numbers, is computed before the tensors' shapes are compared with it.
MOST = {
    "vocab_size": MOST_TOKENS,
    "embed_dim": 1 << 24,
    "num_heads": 1 << 16,
    "num_layers": 1 << 14,
    "num_kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "ffn_dim": 1 << 24,
    "max_seq_len": 1 << 40,
}


def size(path: Path, key: str, value: Any, ours: str) -> int:
    """A size that a file gives, or a CheckpointError that names the file and the key.

    Args:
        path: of the file.
        key: its name in the file.
        value: whatever stands there.
        ours: its name in :class:`LlamaConfig`.
    """
    return checked_int(value, f"{path}: {key!r}", maximum=MOST[ours], error=CheckpointError)


def head_size(path: Path, embed_dim: int, num_heads: int) -> int:
    """E / H, where a file gives no head size."""
    if embed_dim % num_heads:
        raise CheckpointError(
            f"{path}: expected a width that is a multiple of its {num_heads} heads, got {embed_dim}"
        )
    return embed_dim // num_heads


def make_config(path: Path, **fields: Any) -> LlamaConfig:
    """A LlamaConfig, or a CheckpointError that names the file its fields come from."""
    try:
        return LlamaConfig(**fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a Llama model that can be built: {error}") from None


def read_tokenizer(path: Path, read: Callable[[], Tokenizer]) -> Tokenizer | None:
    """A checkpoint's tokenizer; None, with a warning, if it can't be read: the weights can."""
    try:
        return read()
    except TokenizerError as error:
        warnings.warn(f"{path}: loaded without its tokenizer: {error}", stacklevel=4)
        return None
