"""GGUF checkpoints of the llama architecture, read and written with the ``gguf`` package.

Float tensors are mapped from the file; quantised ones (Q4_1, Q8_0, ...) are dequantised to float32
by ``gguf``. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. The rows of the query and
key projections are stored for RoPE on interleaved pairs (llama.cpp's converter reorders them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama_fast._extras import lacking
from llama_fast._reading import checked_positive
from llama_fast.tokenizers import Tokenizer, from_gguf
from llama_fast.tokenizers.save import gguf_fields

from ..config import LlamaConfig
from ..llama import LLaMA
from .common import (
    CheckpointError,
    StoredTensor,
    build,
    head_size,
    make_config,
    read_tokenizer,
    rope_divisors,
    size,
    weights_of,
)

try:
    from gguf import (
        GGML_QUANT_VERSION,
        GGMLQuantizationType,
        GGUFWriter,
        LlamaFileType,
        ReaderTensor,
        RopeScalingType,
        dequantize,
        quants,
    )

    from llama_fast._gguf import Reader
except ImportError as error:
    raise ImportError(lacking("GGUF files", "gguf", "checkpoints")) from error

_ELEMENTS_AT_ONCE = 1 << 16  # dequantised in one call: its intermediate arrays stay in the cache

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


# dtype -> the type of a tensor, and of a file with such tensors.
FILE_TYPES = {
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def load(path: Path, dtype: torch.dtype | None) -> tuple[LLaMA, Tokenizer | None]:
    """Load a GGUF file with its tokenizer; see ``llama_fast.models.load``."""
    reader = _open(path)
    metadata = reader.metadata
    tensors = {
        tensor.name: StoredTensor(
            tuple(int(n) for n in reversed(tensor.shape)), partial(_read, tensor)
        )
        for tensor in reader.tensors
    }
    config = read_config(path, metadata, tensors)
    tensors.pop("rope_freqs.weight", None)
    model = build(path, config, NAMES, tensors, dtype=dtype, interleaved=True)
    model.quantization = _quantization(reader.tensors)
    if "tokenizer.ggml.model" not in metadata:
        return model, None
    return model, read_tokenizer(path, partial(from_gguf, metadata))


def quantization_of(path: Path) -> str | None:
    """Return the type of a file's quantised weights; see ``checkpoints.quantization_of``."""
    return _quantization(_open(path).tensors)


def _open(path: Path) -> Reader:
    try:
        # mode "c": pages that are changed in memory are copied, and the file stays as it is.
        return Reader(path, "c")
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def save(model: LLaMA, path: Path, tokenizer: Tokenizer | None, name: str) -> None:
    """Write a file as llama.cpp's converter does; see ``llama_fast.models.save``.

    Args:
        model: a model in float32, float16 or bfloat16. Norms are written in float32, as llama.cpp
            expects, which is exact.
        path: path of the file.
        tokenizer: the tokenizer to write into the file, or None.
        name: name of the model in the metadata.
    """
    config, dtype = model.config, model.embedding.weight.dtype
    if dtype not in FILE_TYPES:
        raise ValueError(f"dtype: expected float32, float16 or bfloat16 in GGUF, got {dtype}")
    tensor_type, file_type = FILE_TYPES[dtype]
    writer = GGUFWriter(None, "llama")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    factors = config.rope_factors
    if config.rope_scaling is not None:
        factors = tuple(rope_divisors(config, config.rope_scaling).tolist())
    if factors is not None and len(set(factors)) == 1:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factors[0])
    elif factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    if tokenizer is not None:
        for key, value in gguf_fields(tokenizer, config.vocab_size).items():
            _add_field(writer, key, value)
    for tensor, weight in weights_of(model, NAMES, interleaved=True).items():
        if weight.dim() == 1:
            writer.add_tensor(tensor, weight.float().numpy())
        else:  # as bytes: NumPy has no bfloat16
            writer.add_tensor(tensor, weight.view(torch.uint8).numpy(), raw_dtype=tensor_type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_field(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def read_config(
    path: Path, metadata: dict[str, Any], tensors: dict[str, StoredTensor]
) -> LlamaConfig:
    """The configuration in a GGUF file's metadata and in its RoPE factors, if any."""

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"{path}: metadata 'llama.{key}' is missing")
        return value

    def get_size(key: str, ours: str, default: int | None = None) -> int:
        return size(path, f"llama.{key}", get(key, default), ours)

    def number(key: str, default: float | None = None) -> float:
        return checked_positive(get(key, default), f"{path}: 'llama.{key}'", error=CheckpointError)

    if (architecture := metadata.get("general.architecture")) != "llama":
        raise CheckpointError(f"{path}: expected architecture 'llama', got {architecture!r}")
    if "token_embd.weight" not in tensors:
        raise CheckpointError(f"{path}: missing tensor 'token_embd.weight'")
    embed_dim = get_size("embedding_length", "embed_dim")
    num_heads = get_size("attention.head_count", "num_heads")
    if metadata.get("llama.attention.key_length"):
        head_dim = get_size("attention.key_length", "head_dim")
    else:
        head_dim = head_size(path, embed_dim, num_heads)
    if get("rope.dimension_count", head_dim) != head_dim:
        raise CheckpointError(
            f"{path}: metadata 'llama.rope.dimension_count': expected the head size {head_dim} "
            f"(RoPE on whole heads), got {get('rope.dimension_count')}"
        )
    # As in llama.cpp: a factor without a type means linear scaling, and factors of single
    # frequencies multiply it.
    scaling, linear = metadata.get("llama.rope.scaling.type", "linear"), 1.0
    if scaling == "linear":
        linear = number("rope.scaling.factor", 1.0) if get("rope.scaling.factor", 1.0) else 1.0
    elif scaling != "none":
        raise CheckpointError(f"{path}: RoPE scaling {scaling!r}: expected none or linear")
    factors: tuple[float, ...] | None = None
    if "rope_freqs.weight" in tensors:
        stored = tensors["rope_freqs.weight"]
        if stored.shape != (head_dim // 2,):
            raise CheckpointError(
                f"{path}: tensor 'rope_freqs.weight': expected shape {(head_dim // 2,)}, got "
                f"{stored.shape}"
            )
        factors = tuple(linear * f for f in stored.read().tolist())
    elif linear != 1:
        factors = (linear,) * (head_dim // 2)
    return make_config(
        path,
        vocab_size=size(
            path, "token_embd.weight", tensors["token_embd.weight"].shape[0], "vocab_size"
        ),
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_layers=get_size("block_count", "num_layers"),
        num_kv_heads=get_size("attention.head_count_kv", "num_kv_heads", num_heads),
        head_dim=head_dim,
        ffn_dim=get_size("feed_forward_length", "ffn_dim"),
        max_seq_len=get_size("context_length", "max_seq_len"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=number("rope.freq_base", 10000.0),
        rope_factors=factors,
        tie_embeddings="output.weight" not in tensors,
    )


def _quantization(tensors: Iterable[ReaderTensor]) -> str | None:
    """The type of the most elements, such as "Q4_1"; None if these are floats."""
    elements: Counter[GGMLQuantizationType] = Counter()
    for tensor in tensors:
        elements[tensor.tensor_type] += int(tensor.n_elements)
    kind = max(elements, key=elements.__getitem__)
    floats = {kind for kind, _ in FILE_TYPES.values()}
    return None if kind in floats else str(kind.name)


def _read(tensor: ReaderTensor) -> Tensor:
    tensor_type = tensor.tensor_type
    if tensor_type == GGMLQuantizationType.BF16:  # NumPy has no bfloat16: read the bits
        shape = tuple(int(n) for n in reversed(tensor.shape))
        return torch.from_numpy(tensor.data.view(np.int16).reshape(shape)).view(torch.bfloat16)
    if tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return torch.from_numpy(tensor.data)
    return torch.from_numpy(_dequantized(tensor.data, tensor_type))


def _dequantized(data: np.ndarray, tensor_type: GGMLQuantizationType) -> np.ndarray:
    """The elements of a quantised tensor, as `gguf.dequantize` returns them.

    That function takes 16 rows at a time; more of them halve the time of a model with short rows.
    """
    quantization = getattr(quants, tensor_type.name, None)
    if quantization is None:
        return dequantize(data, tensor_type)  # raises the package's error
    rows = data.reshape(-1, data.shape[-1])
    quantization.init_grid()
    shape = quants.quant_shape_from_byte_shape(rows.shape, tensor_type)
    elements = np.empty(shape, np.float32)
    step = max(1, _ELEMENTS_AT_ONCE // shape[-1])
    for begin in range(0, len(rows), step):
        elements[begin : begin + step] = quantization.dequantize_rows(rows[begin : begin + step])
    return elements.reshape(*data.shape[:-1], shape[-1])
