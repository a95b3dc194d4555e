"""Reads and writes checkpoints, one module per format; the format is detected from the content.

| format       | path                                                           | file             |
|--------------|----------------------------------------------------------------|------------------|
| GGUF         | file with the magic ``GGUF``                                   | `gguf.py`        |
| Hugging Face | folder with ``config.json`` and safetensors, or one of its     | `huggingface.py` |
|              | ``.safetensors`` files                                         |                  |
| Meta         | ``consolidated.*.pth`` or a folder of them with ``params.json``| `meta.py`        |
| llama2.c     | ``.bin``, legacy, version 1 (float32) or 2 (int8)              | `llama2c.py`     |
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llama_fast._dtype import dtype_of
from llama_fast.tokenizers import Tokenizer

from ..config import LlamaConfig
from ..llama import LLaMA
from .common import CheckpointError
from .whole import written_whole

__all__ = ["CheckpointError", "load", "quantization_of", "save"]


def load(
    path: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    *,
    config: LlamaConfig | None = None,
) -> tuple[LLaMA, Tokenizer | None]:
    """Load a checkpoint and the tokenizer that comes with it.

    Args:
        path: a GGUF, ``.pth``, ``.bin`` or ``.safetensors`` file, or a folder.
        dtype: dtype of the model, or its name, such as "bfloat16". None: that of the stored
            embedding, float32 if quantised.
        config: the configuration; needed only for a Meta ``.pth`` file that has no ``params.json``
            beside it.

    If the configuration ties the head to the embedding but the file stores a different head, the
    stored head is used, with a warning. ``model.safetensors`` has priority over the files that
    ``model.safetensors.index.json`` lists, as in transformers.

    Returns:
        The model on the CPU in evaluation mode, and the tokenizer. The tokenizer is None if the
        checkpoint has none or, with a warning, if it cannot be read.

    Raises:
        FileNotFoundError: `path` does not exist.
        CheckpointError: the checkpoint is damaged, incomplete, of unknown format, or a pickle that
            contains code, which is not executed.
        ImportError: the package that reads this format is not installed.

    Example:
        >>> model, tokenizer = load("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> model, tokenizer = load("Llama-3.2-1B/", "bfloat16")
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: no such file or folder: {path}")
    dtype = dtype_of(dtype)
    # Each loader imports packages that only its format needs, so loaders are imported on use.
    found = _find_format(path)
    if found == "meta":
        from . import meta

        return meta.load(path, dtype, config)
    if config is not None:
        raise ValueError(f"config: expected None for {path}, which has its own")
    if found == "gguf":
        from . import gguf

        return gguf.load(path, dtype)
    if found == "huggingface":
        from . import huggingface

        return huggingface.load(path, dtype)
    from . import llama2c

    return llama2c.load(path, dtype)


def save(
    model: LLaMA,
    path: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    to: str = "hf",
    overwrite: bool = False,
) -> None:
    """Write a model and its tokenizer atomically, in the model's dtype.

    Args:
        model: the model; reading the checkpoint gives the same bits.
        path: path of the folder to write, or of the file with ``to="gguf"``.
        tokenizer: the tokenizer to write with the weights, or None.
        to: the format; :func:`load` reads all three. "hf" writes ``config.json``,
            ``model.safetensors`` and the tokenizer's files, for transformers' ``Auto`` classes.
            "meta" writes ``params.json`` (without max_seq_len), ``consolidated.00.pth`` and, if the
            tokenizer has that form, ``tokenizer.model``. "gguf" writes one file for llama.cpp, in
            float32, float16 or bfloat16.
        overwrite: replace an existing checkpoint once the new one is complete.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false, or `path` is not a checkpoint.
        ValueError: the format cannot express the model's RoPE scaling, head size or dtype, or the
            kind of tokenizer.
        OSError: writing failed (the disk is full, for example); an existing checkpoint is
            unchanged.
        ImportError: the package that writes this format is not installed.

    Example:
        >>> save(model.bfloat16(), "smollm2.gguf", tokenizer, to="gguf")
    """
    if to not in ("hf", "meta", "gguf"):
        raise ValueError(f"to: expected hf, meta or gguf, got {to!r}")
    path = Path(path)
    with written_whole(path, folder=to != "gguf", overwrite=overwrite) as partial:
        if to == "gguf":
            from . import gguf

            gguf.save(model, partial, tokenizer, path.stem)
        elif to == "meta":
            from . import meta

            meta.save(model, partial, tokenizer)
        else:
            from . import huggingface

            huggingface.save(model, partial, tokenizer)


def quantization_of(path: str | os.PathLike[str]) -> str | None:
    """Return the type of the quantised weights of a GGUF file, such as "Q4_1"; else None.

    Only the list of its tensors is read.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = Path(path)
    if not path.is_file() or _find_format(path) != "gguf":
        return None
    from . import gguf

    return gguf.quantization_of(path)


def _find_format(path: Path) -> str:
    if path.is_dir():
        if (path / "config.json").exists():
            return "huggingface"
        if (path / "params.json").exists() or any(path.glob("consolidated.*.pth")):
            return "meta"
        raise CheckpointError(
            f"{path}: expected a folder with config.json (Hugging Face) or with params.json and "
            "consolidated.*.pth (Meta), found neither"
        )
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"GGUF"):
        return "gguf"
    if path.suffix == ".safetensors":
        return "huggingface"
    # torch.save writes a zip archive; a bare pickle starts with its protocol number.
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "meta"
    if path.suffix in (".pth", ".pt"):
        return "meta"
    if path.suffix == ".bin":
        return "llama2c"
    raise CheckpointError(
        f"{path}: expected a GGUF, safetensors, .pth or llama2.c .bin file, got one that "
        f"begins with {start[:4]!r}"
    )
