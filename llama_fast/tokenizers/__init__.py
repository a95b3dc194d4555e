"""Tokenizers of Llama models, whatever file they come in, behind one small interface.

| file                                   | read with      | module              |
|----------------------------------------|----------------|---------------------|
| Hugging Face ``tokenizer.json``        | tokenizers     | `bpe.py`            |
| in a GGUF file, byte-level BPE         | tokenizers     | `bpe.py`            |
| in a GGUF file, SentencePiece          | sentencepiece  | `spm.py`            |
| Llama 2's ``tokenizer.model``          | sentencepiece  | `spm.py`            |
| llama2.c's ``tok512.bin``              | sentencepiece  | `spm.py`            |
| none: the text's bytes                 |                | `byte.py`           |

`train_bpe.py` makes a new byte-level BPE out of a corpus.
| Llama 3's ``tokenizer.model``          | tiktoken       | `ranks.py`          |
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .base import Tokenizer, TokenizerError
from .byte import ByteTokenizer

__all__ = [
    "ByteTokenizer",
    "Tokenizer",
    "TokenizerError",
    "from_gguf",
    "from_llama2c",
    "load_tokenizer",
]

# The modules below import the package that reads their format, so each waits for its turn.


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load ``tokenizer.json``, ``tokenizer.model`` (Llama 2's or 3's), or llama2.c's ``tok*.bin``.

    A folder stands for the first of these in it; ``byte`` is :class:`ByteTokenizer`.

    Raises:
        FileNotFoundError: no such file.
        TokenizerError: it is none of these, or damaged, or the package that reads it is missing.
    """
    if os.fspath(path) == "byte":
        return ByteTokenizer()
    path = Path(path)
    if path.is_dir():
        names = [*(path / name for name in ("tokenizer.json", "tokenizer.model")),
                 *sorted(path.glob("tok*.bin"))]  # fmt: skip
        path = next((name for name in names if name.is_file()), path / "tokenizer.json")
    if not path.is_file():
        raise FileNotFoundError(f"path: no such file: {path}")
    if path.suffix == ".json":
        from .bpe import from_json

        return from_json(path)
    if path.suffix == ".bin":
        return from_llama2c(path)
    if path.suffix != ".model":
        raise TokenizerError(f"{path}: expected a .json, .model or .bin file")
    with path.open("rb") as file:
        start = file.read(1)
    if start == b"\n":  # field 1 of SentencePiece's protocol buffer; Llama 3's is base64 text
        from .spm import from_model

        return from_model(path)
    from .ranks import from_ranks

    return from_ranks(path)


def from_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata (its keys ``tokenizer.ggml.*``).

    Raises:
        TokenizerError: there is none, or of a kind that is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        from .bpe import from_gguf_bpe

        return from_gguf_bpe(metadata)
    if kind == "llama":
        from .spm import from_gguf_spm

        return from_gguf_spm(metadata)
    raise TokenizerError(f"tokenizer.ggml.model: expected 'gpt2' or 'llama', got {kind!r}")


def from_llama2c(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in one of llama2.c's ``tok*.bin`` files. Raises as :func:`load_tokenizer`."""
    from .spm import from_llama2c_bin

    return from_llama2c_bin(Path(path))
