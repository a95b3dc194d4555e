"""Loads Llama-style models from any source, with their tokenizers."""

from __future__ import annotations

import os

import torch

from llama_fast._dtype import dtype_of
from llama_fast.tokenizers import Tokenizer

from ..checkpoints import load
from ..llama import LLaMA
from .hub import locate
from .tokenizer import as_tokenizer
from .training_run import is_run, load_run

__all__ = ["check_vocabulary", "load_model", "read_model"]


def load_model(
    source: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[LLaMA, Tokenizer]:
    """Load a model in evaluation mode on the CPU, and its tokenizer.

    Args:
        source: a checkpoint that :func:`llama_fast.models.load` reads, the folder of a training run
            (`out`), of which the newest checkpoint is read, or the name of a repository on the hub.
        tokenizer: a tokenizer, or a file or folder that contains one. None: the tokenizer in the
            checkpoint or, for a training run, that of its training data.
        dtype: dtype of the model, or its name; None: that of the checkpoint.

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError, RunCheckpointError: the checkpoint is damaged.
        ValueError: no tokenizer was given or found, or it has more tokens than the model.
        DataError: no tokenizer was given, and the run's training data has been replaced.
    """
    model, own = read_model(source, dtype, with_tokenizer=tokenizer is None)
    chosen = own if tokenizer is None else as_tokenizer(tokenizer)
    if chosen is None:
        raise ValueError(f"tokenizer: expected one, for {source} has none of its own")
    check_vocabulary(chosen, model.config.vocab_size)
    return model, chosen


def read_model(
    source: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    *,
    with_tokenizer: bool = True,
    average: bool = False,
) -> tuple[LLaMA, Tokenizer | None]:
    """Load a model in evaluation mode on the CPU, and the tokenizer that comes with it, or None.

    Args:
        source: as in :func:`load_model`.
        dtype: dtype of the model, or its name; None: that of the checkpoint.
        with_tokenizer: for a training run, read the tokenizer of its training data, which must be
            unchanged.
        average: for a training run, load the moving average of the weights.

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError, RunCheckpointError: the checkpoint is damaged.
        ValueError: `average` is set, and `source` is not a training run or kept no average.
        DataError: the run's training data has been replaced.
    """
    dtype, path = dtype_of(dtype), locate(source)
    if is_run(path):
        model, tokenizer = load_run(path, with_tokenizer=with_tokenizer, average=average)
        return model if dtype is None else model.to(dtype), tokenizer
    if average:
        raise ValueError(f"average: expected the folder of a training run, got {source}")
    return load(path, dtype)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise ValueError if the tokenizer has more tokens than the model's `vocab_size`."""
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the model's {vocab_size} tokens, got "
            f"{tokenizer.vocab_size}"
        )
