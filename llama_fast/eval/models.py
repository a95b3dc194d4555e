"""Models to evaluate, with the tokenizer that belongs to them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llama_fast.data import TokenShards
from llama_fast.data.tokenizer import tokenizer_of
from llama_fast.models import LLaMA, LlamaConfig, load
from llama_fast.tokenizers import Tokenizer, load_tokenizer
from llama_fast.train.checkpoints import CheckpointError, Checkpoints


def load_model(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[LLaMA, Tokenizer]:
    """A published checkpoint, or the newest one of a training run, in evaluation mode.

    Args:
        path: whatever :func:`llama_fast.models.load` reads, or the folder of a run (`out`).
        tokenizer: file or folder for :func:`load_tokenizer`; None takes the checkpoint's own, and
            of a run that of its training data.
        dtype: of the model; None: as stored.

    Raises:
        FileNotFoundError, CheckpointError: there is none, or it is damaged.
        ValueError: no tokenizer comes with it and none is given, or one with more tokens than the
            model has.
    """
    folder = Path(path) / "checkpoints"
    own: Tokenizer | None
    if folder.is_dir():
        model, own = _newest(folder, tokenizer is None)
        model = model if dtype is None else model.to(dtype)
    else:
        model, own = load(path, dtype)
    found = own if tokenizer is None else load_tokenizer(tokenizer)
    if found is None:
        raise ValueError(f"tokenizer: expected one, for {path} has none of its own")
    if found.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"tokenizer: expected at most the model's {model.config.vocab_size} tokens, got "
            f"{found.vocab_size}"
        )
    return model, found


def _newest(folder: Path, with_tokenizer: bool) -> tuple[LLaMA, Tokenizer | None]:
    checkpoints = Checkpoints(folder)
    found = checkpoints.latest()
    if found is None:
        raise CheckpointError(f"{folder}: expected a checkpoint, there is none")
    model = LLaMA(LlamaConfig(**found.state["model"]))
    weights = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
    checkpoints.load(found, weights)
    tokenizer = None
    if with_tokenizer:
        shards = Path(found.state["config"]["data"]["train"])
        if not shards.is_dir():
            raise ValueError(f"tokenizer: expected one, for the run's data is not at {shards}")
        tokenizer = tokenizer_of(TokenShards(shards))
    return model.eval(), tokenizer
