"""Llama-style models of any source, with their tokenizer."""

from __future__ import annotations

import os

import torch

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
    dtype: torch.dtype | None = None,
) -> tuple[LLaMA, Tokenizer]:
    """A model in evaluation mode on the CPU, and its tokenizer.

    Args:
        source: a checkpoint that :func:`llama_fast.models.load` reads, the folder of a training run
            (`out`), of which the newest checkpoint is read, or a name on the hub.
        tokenizer: one, or a file or folder with one; None takes that of the checkpoint, and of a
            run that of its training data.
        dtype: of the model; None: as stored.

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError, RunCheckpointError: it is damaged.
        ValueError: no tokenizer comes with it and none is given, or one with more tokens than the
            model has.
        DataError: the data at the place of a run's training data are others now, and no tokenizer
            is given.
    """
    model, own = read_model(source, dtype, with_tokenizer=tokenizer is None)
    chosen = own if tokenizer is None else as_tokenizer(tokenizer)
    if chosen is None:
        raise ValueError(f"tokenizer: expected one, for {source} has none of its own")
    check_vocabulary(chosen, model.config.vocab_size)
    return model, chosen


def read_model(
    source: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    *,
    with_tokenizer: bool = True,
    average: bool = False,
) -> tuple[LLaMA, Tokenizer | None]:
    """A model in evaluation mode on the CPU, and the tokenizer that comes with it, if any.

    Args:
        source: as in :func:`load_model`.
        dtype: of the model; None: as stored.
        with_tokenizer: read that of a run's training data, which has to be there unchanged.
        average: of a training run the moving average of the weights, not the weights.

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError, RunCheckpointError: it is damaged.
        ValueError: `average` of what is no training run, or of one that kept none.
        DataError: as in :func:`load_model`.
    """
    path = locate(source)
    if is_run(path):
        model, tokenizer = load_run(path, with_tokenizer=with_tokenizer, average=average)
        return model if dtype is None else model.to(dtype), tokenizer
    if average:
        raise ValueError(f"average: expected the folder of a training run, got {source}")
    return load(path, dtype)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """ValueError if the tokenizer has more tokens than the model's `vocab_size`."""
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the model's {vocab_size} tokens, got "
            f"{tokenizer.vocab_size}"
        )
