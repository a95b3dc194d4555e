"""Trains a byte-level BPE tokenizer, for training runs from scratch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from .base import LLAMA3_SPLIT, TokenizerError
from .bpe import FastTokenizer, decoders, models, pre_tokenizers, split_by, tokenizers
from .byte import END


def train_bpe(
    texts: Iterable[str], vocab_size: int, folder: str | os.PathLike[str]
) -> FastTokenizer:
    """Train a tokenizer with `vocab_size` tokens on texts, write its files, and return it.

    Texts are split into words as in Llama 3. All 256 bytes are tokens, so any text can be encoded.
    ``<|endoftext|>``, id 0, begins and ends a text (Sennrich et al. 2016, arXiv:1508.07909).

    Args:
        texts: the corpus.
        vocab_size: at least 257: the bytes and ``<|endoftext|>``.
        folder: folder to which ``tokenizer.json`` and ``tokenizer_config.json`` are written.

    Raises:
        ValueError: `vocab_size` is too small.
        TokenizerError: the corpus is too small for that many tokens.
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size: expected at least 257, got {vocab_size}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = split_by(LLAMA3_SPLIT)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise TokenizerError(
            f"vocab_size: expected a corpus large enough for {vocab_size} tokens, got one for "
            f"{backend.get_vocab_size()}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return FastTokenizer(backend, 0, 0)
