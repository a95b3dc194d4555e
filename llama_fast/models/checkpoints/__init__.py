"""Reading and writing checkpoints, one file a format; a path is known by its content.

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

from llama_fast.tokenizers import Tokenizer

from ..config import LlamaConfig
from ..llama import LLaMA
from .common import CheckpointError
from .whole import written_whole

__all__ = ["CheckpointError", "load", "save"]


def load(
    path: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    config: LlamaConfig | None = None,
) -> tuple[LLaMA, Tokenizer | None]:
    """Load a checkpoint and the tokenizer that comes with it.

    Args:
        path: a GGUF, ``.pth``, ``.bin`` or ``.safetensors`` file, or a folder.
        dtype: of the model. None: as stored (that of the embedding), quantised weights as float32.
        config: for a Meta ``.pth`` without ``params.json`` beside it; nothing else needs it.

    A head that the configuration says is tied is so only if the file holds no other: one that
    differs from the embedding is kept, with a warning. ``model.safetensors`` comes before the files
    that ``model.safetensors.index.json`` lists, as in transformers.

    Returns:
        The model on the CPU in evaluation mode; the tokenizer, or None where the checkpoint has
        none (with a warning, if it has one that this package can't read).

    Raises:
        FileNotFoundError: no such path.
        CheckpointError: the checkpoint is damaged, incomplete, of no known format, or a pickle that
            holds code, which is refused and not executed.
        ImportError: the package that reads this format is not installed.

    Example:
        >>> model, tokenizer = load("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> model, tokenizer = load("Llama-3.2-1B/", dtype=torch.bfloat16)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: no such file or folder: {path}")
    # The loaders import packages that only their format needs, so each is imported when its turn
    # comes.
    kind = _find_kind(path)
    if kind == "meta":
        from . import meta

        return meta.load(path, dtype, config)
    if config is not None:
        raise ValueError(f"config: expected None for {path}, which says its own")
    if kind == "gguf":
        from . import gguf

        return gguf.load(path, dtype)
    if kind == "huggingface":
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
    """Write a model and its tokenizer, in its dtype, whole or not at all.

    Args:
        model: whose weights are read back with the same bits.
        path: of the folder, or with ``to="gguf"`` of the file.
        tokenizer: to be put beside the weights, or None.
        to: "hf": ``config.json``, ``model.safetensors`` and the tokenizer's files, for
            transformers' ``Auto`` classes; "meta": ``params.json``, ``consolidated.00.pth`` and
            ``tokenizer.model``, if the tokenizer can be one; the longest sequence is not kept;
            "gguf": for llama.cpp, in float32, float16 or bfloat16. :func:`load` reads all three.
        overwrite: replace a checkpoint that is there, once the new one is complete.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false, or it is no checkpoint.
        ValueError: the format has no place for the model's RoPE scaling, head size or dtype, or no
            name for how the tokenizer works.
        OSError: the disk is full, or another failure; what was there before still is.
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


def _find_kind(path: Path) -> str:
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
    # A zip archive is what torch.save writes; a bare pickle starts with its protocol number.
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "meta"
    if path.suffix in (".pth", ".pt"):
        return "meta"
    if path.suffix == ".bin":
        return "llama2c"
    raise CheckpointError(
        f"{path}: expected a GGUF, safetensors, .pth or llama2.c .bin file; its first bytes, "
        f"{start[:4]!r}, are of none of them"
    )
