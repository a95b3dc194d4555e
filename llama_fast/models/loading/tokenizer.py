"""Reads tokenizers that are given separately from a model."""

from __future__ import annotations

import os
from typing import Any

from llama_fast.tokenizers import Tokenizer, default_template, load_tokenizer

from .hub import locate

__all__ = ["as_tokenizer"]


def as_tokenizer(given: Any) -> Tokenizer:
    """Convert a path or a tokenizer to a :class:`Tokenizer`.

    Args:
        given: a :class:`Tokenizer`, which is returned as it is; a file, a folder, or a name that
            :func:`locate` understands, which is read; or a fast tokenizer of transformers, of which
            a copy is wrapped.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: `given` is none of these.
    """
    if isinstance(given, Tokenizer):
        return given
    if isinstance(given, (str, os.PathLike)):
        is_bytes = os.fspath(given) == "byte"
        return load_tokenizer(given if is_bytes else locate(given, argument="tokenizer"))
    backend = getattr(given, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            "tokenizer: expected a file, a folder, a Tokenizer or a fast tokenizer of "
            f"transformers, got {type(given).__name__}"
        )
    from llama_fast.tokenizers.bpe import FastTokenizer

    # A copy, because ours switches off settings that the owner of the original may need.
    tokenizer = FastTokenizer(
        type(backend).from_str(backend.to_str()), given.bos_token_id, given.eos_token_id
    )
    tokenizer.chat_template = default_template(given.chat_template)
    return tokenizer
