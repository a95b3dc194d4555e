"""llama2.c ``.bin`` checkpoints: a header, then the weights in a fixed order, without names.

Three versions, after ``export.py`` of github.com/karpathy/llama2.c (MIT):

- legacy: 7 int32 (E, ffn, N, H, K, V, max_seq_len; V < 0 says that the head is not tied), then
  float32 weights, with RoPE tables (unused here) before the head.
- 1: magic "ak42", version, the 7 int32, a byte "tied", zeros up to 256 bytes, then float32 weights.
- 2: as 1 with the group size g after the byte; norms in float32, then each matrix as int8, followed
  by one float32 scale for every g of its numbers, counted across rows.

RoPE on interleaved pairs, base 10000; RMSNorm's eps is 1e-5.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama_fast.tokenizers import Tokenizer, from_llama2c

from ..config import LlamaConfig
from ..llama import LLaMA
from .common import CheckpointError, StoredTensor, build, make_config, read_tokenizer

MAGIC = 0x616B3432
HEADER_BYTES = 256  # versions 1 and 2

ATTENTION_NORM, FFN_NORM = "layers.{i}.attention_norm", "layers.{i}.feed_forward_norm"
ATTENTION = [f"layers.{{i}}.attention.{name}_proj" for name in "qkvo"]
FFN = [f"layers.{{i}}.feed_forward.{name}_proj" for name in ("gate", "down", "up")]

# The weights in file order; a name with {i} stands for the tensors of all layers, one by one.
LEGACY_ORDER = ["embedding", ATTENTION_NORM, *ATTENTION, FFN_NORM, *FFN, "norm", "rope", "head"]
ORDER = [ATTENTION_NORM, FFN_NORM, "norm", "embedding", *ATTENTION, *FFN, "head"]


class Header(NamedTuple):
    """The header of a file."""

    version: int  # 0 = legacy
    config: LlamaConfig
    size: int  # bytes before the weights
    group: int  # elements per scale, version 2


def load(path: Path, dtype: torch.dtype | None) -> tuple[LLaMA, Tokenizer | None]:
    """Load a ``.bin`` file, and ``tok<V>.bin`` or ``tokenizer.bin`` from the same folder.

    See ``llama_fast.models.load``.
    """
    header = read_header(path)
    config = header.config
    # The file is mapped: pages are read on use, and copied, not written back, if weights change.
    data = np.memmap(path, dtype=np.uint8, mode="c")
    tensors, start = {}, header.size
    for part in _layout(header):
        read = partial(_read, data[start : start + part.size], part)
        tensors[f"{part.name}.weight"] = StoredTensor(part.shape, read)
        start += part.size
    tensors.pop("rope.weight", None)
    names = {name: name for name in ORDER}
    model = build(path, config, names, tensors, dtype=dtype, interleaved=True)
    model.quantization = "int8" if header.version == 2 else None
    for name in (f"tok{config.vocab_size}.bin", "tokenizer.bin"):
        if (path.parent / name).exists():
            return model, read_tokenizer(path, partial(from_llama2c, path.parent / name))
    return model, None


def read_header(path: Path) -> Header:
    """Read the header and check the file's size against it."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if len(start) < 28:
        raise CheckpointError(f"{path}: expected a header of 28 bytes or more, got {len(start)}")
    if struct.unpack_from("<I", start)[0] == MAGIC:
        if len(start) < HEADER_BYTES:
            raise CheckpointError(
                f"{path}: truncated: expected a header of {HEADER_BYTES} bytes, got {len(start)}"
            )
        version, *sizes, tied, group = struct.unpack_from("<i7iBi", start, 4)
        if version not in (1, 2):
            raise CheckpointError(f"{path}: expected llama2.c version 1 or 2, got {version}")
        header_bytes = HEADER_BYTES
    else:
        *sizes, vocab_size, max_seq_len = struct.unpack_from("<7i", start)
        version, tied, group, header_bytes = 0, vocab_size > 0, 1, 28
        sizes += [abs(vocab_size), max_seq_len]
    embed_dim, ffn_dim, num_layers, num_heads, num_kv_heads, vocab_size, max_seq_len = sizes
    format_name = f"llama2.c version {version}" if version else "llama2.c, or of no known format"
    # Files of other formats have arbitrary numbers here: reject sizes larger than in any model.
    if not all(0 < size < 2**24 for size in sizes) or num_layers > 2**14:
        raise CheckpointError(
            f"{path}: {format_name}: no model has the sizes in its header, {sizes}"
        )
    config = make_config(
        path,
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        ffn_dim=ffn_dim,
        max_seq_len=max_seq_len,
        tie_embeddings=bool(tied),
    )
    header = Header(version, config, header_bytes, group)
    counts = {math.prod(shape) for shape in _matrix_shapes(config).values()}
    if version == 2 and (group <= 0 or any(count % group for count in counts)):
        raise CheckpointError(
            f"{path}: expected a group size that divides {sorted(counts)}, the sizes of the "
            f"matrices, got {group}"
        )
    expected = header_bytes + sum(part.size for part in _layout(header))
    if file_bytes != expected:
        raise CheckpointError(
            f"{path}: {format_name}: {'truncated' if file_bytes < expected else 'too long'}: its "
            f"header, {sizes}, promises {expected} bytes, got {file_bytes}"
        )
    return header


class Part(NamedTuple):
    """One tensor in the file."""

    name: str
    shape: tuple[int, ...]
    group: int  # elements per scale; 0 = float32
    size: int  # bytes


def _layout(header: Header) -> Iterator[Part]:
    """The tensors after the header, in file order."""
    config, shapes = header.config, _matrix_shapes(header.config)
    shapes["rope"] = (2 * config.max_seq_len, config.head_dim // 2)
    for name in LEGACY_ORDER if header.version == 0 else ORDER:
        if name == "head" and config.tie_embeddings:
            continue
        shape = shapes.get(name, (config.embed_dim,))
        group = header.group if header.version == 2 and name in shapes else 0
        count = math.prod(shape)
        size = count + 4 * (count // group) if group else 4 * count
        for i in range(config.num_layers if "{i}" in name else 1):
            yield Part(name.format(i=i), shape, group, size)


def _matrix_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    E, V, ffn = config.embed_dim, config.vocab_size, config.ffn_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = dict(zip(ATTENTION, [(q, E), (kv, E), (kv, E), (E, q)], strict=True))
    feed_forward = dict(zip(FFN, [(ffn, E), (E, ffn), (ffn, E)], strict=True))
    return {"embedding": (V, E), "head": (V, E), **attention, **feed_forward}


def _read(data: np.ndarray, part: Part) -> Tensor:
    if not part.group:
        return torch.from_numpy(data.view(np.float32).reshape(part.shape))
    count = math.prod(part.shape)
    numbers = data[:count].view(np.int8).reshape(-1, part.group).astype(np.float32)
    scales = data[count:].view(np.float32)
    return torch.from_numpy((numbers * scales[:, None]).reshape(part.shape))
