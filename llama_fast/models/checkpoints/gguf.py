"""GGUF checkpoints of the llama architecture, read with the ``gguf`` package.

Float tensors are mapped from the file; quantised ones (Q4_1, Q8_0, ...) are dequantised to float32
by ``gguf``. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The rows of the query and
key projections are stored for RoPE on interleaved pairs (llama.cpp's converter reorders them).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama_fast.tokenizers import Tokenizer, from_gguf

from ..config import LlamaConfig
from ..llama import LLaMA
from .common import CheckpointError, Stored, build, make_config, read_tokenizer

try:
    from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, dequantize
except ImportError as error:
    raise ImportError("GGUF files need the gguf package: pip install gguf") from error

NAMES = {
    "embedding": "token_embd",
    "layers.{i}.attention_norm": "blk.{i}.attn_norm",
    "layers.{i}.attention.q_proj": "blk.{i}.attn_q",
    "layers.{i}.attention.k_proj": "blk.{i}.attn_k",
    "layers.{i}.attention.v_proj": "blk.{i}.attn_v",
    "layers.{i}.attention.o_proj": "blk.{i}.attn_output",
    "layers.{i}.feed_forward_norm": "blk.{i}.ffn_norm",
    "layers.{i}.feed_forward.gate_proj": "blk.{i}.ffn_gate",
    "layers.{i}.feed_forward.up_proj": "blk.{i}.ffn_up",
    "layers.{i}.feed_forward.down_proj": "blk.{i}.ffn_down",
    "norm": "output_norm",
    "head": "output",
}


class Reader(GGUFReader):
    """The gguf package's reader, at twice its speed, and stopping at the end of the file."""

    @property
    def data(self) -> Any:
        """The file's bytes."""
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._data = np.asarray(mapped)  # the same memory: slicing a memmap itself is slow

    def _get(
        self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
    ) -> np.ndarray:
        part = super()._get(offset, dtype, count, override_order)
        if len(part) < count:  # a damaged count could go on for ever
            raise IndexError(f"byte {offset} and what follows are outside the file")
        return part


def load(path: Path, dtype: torch.dtype | None) -> tuple[LLaMA, Tokenizer | None]:
    """Load a GGUF file with its tokenizer; see ``llama_fast.models.load``."""
    try:
        # "c": pages of the file may be changed in memory, and are then copied, not written back.
        reader = Reader(path, "c")
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}: truncated or damaged GGUF file ({error})") from error
    tensors = {
        tensor.name: Stored(tuple(int(n) for n in reversed(tensor.shape)), partial(_read, tensor))
        for tensor in reader.tensors
    }
    config = read_config(path, metadata, tensors)
    tensors.pop("rope_freqs.weight", None)
    model = build(path, config, NAMES, tensors, dtype=dtype, interleaved=True)
    return model, read_tokenizer(path, partial(from_gguf, metadata))


def read_config(path: Path, metadata: dict[str, Any], tensors: dict[str, Stored]) -> LlamaConfig:
    """The configuration in a GGUF file's metadata (and in its RoPE factors, if it has some)."""

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"{path}: metadata 'llama.{key}' is missing")
        return value

    if (architecture := metadata.get("general.architecture")) != "llama":
        raise CheckpointError(f"{path}: expected architecture 'llama', got {architecture!r}")
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path}: missing tensor 'token_embd.weight'")
    embed_dim, num_heads = get("embedding_length"), get("attention.head_count")
    head_dim = metadata.get("llama.attention.key_length") or embed_dim // num_heads
    if get("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(
            f"{path}: metadata 'llama.rope.dimension_count': expected the head size {head_dim} "
            f"(RoPE on whole heads), got {get('rope.dimension_count')}"
        )
    factors: tuple[float, ...] | None = None
    if "rope_freqs.weight" in tensors:
        factors = tuple(tensors["rope_freqs.weight"].read().tolist())
    elif (scaling := metadata.get("llama.rope.scaling.type", "none")) != "none":
        if scaling != "linear":
            raise CheckpointError(f"{path}: RoPE scaling {scaling!r}: expected none or linear")
        factors = (get("rope.scaling.factor"),) * (head_dim // 2)
    return make_config(
        path,
        vocab_size=tensors["token_embd.weight"].shape[0],
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_layers=get("block_count"),
        num_kv_heads=get("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        ffn_dim=get("feed_forward_length"),
        max_seq_len=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=get("rope.freq_base", 10000.0),
        rope_factors=factors,
        tie_embeddings="output.weight" not in tensors,
    )


def _read(tensor: ReaderTensor) -> Tensor:
    kind = tensor.tensor_type
    if kind == GGMLQuantizationType.BF16:  # NumPy has no bfloat16: take the bits
        shape = tuple(int(n) for n in reversed(tensor.shape))
        return torch.from_numpy(tensor.data.view(np.int16).reshape(shape)).view(torch.bfloat16)
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return torch.from_numpy(tensor.data)
    return torch.from_numpy(dequantize(tensor.data, kind))
