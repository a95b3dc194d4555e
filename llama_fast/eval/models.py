"""Models to evaluate, with the tokenizer that belongs to them."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llama_fast.data import DataError, TokenShards
from llama_fast.data.tokenizer import tokenizer_of
from llama_fast.models import LLaMA, load
from llama_fast.tokenizers import Tokenizer, load_tokenizer
from llama_fast.train.build import recorded_shape
from llama_fast.train.checkpoints import Checkpoint, CheckpointError, CheckpointManager


def load_model(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | Tokenizer | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[LLaMA, Tokenizer]:
    """A published checkpoint, or the newest one of a training run, in evaluation mode.

    Args:
        path: whatever :func:`llama_fast.models.load` reads, or the folder of a run (`out`).
        tokenizer: one, or a file or folder for :func:`load_tokenizer`; None takes the checkpoint's
            own, and of a run that of its training data.
        dtype: of the model; None: as stored.

    Raises:
        FileNotFoundError, CheckpointError: there is none, or it is damaged.
        ValueError: no tokenizer comes with it and none is given, or one with more tokens than the
            model has.
        DataError: where a run's training data was is other data now, and no tokenizer is given.
    """
    folder = Path(path) / "checkpoints"
    own: Tokenizer | None
    if folder.is_dir():
        model, own = load_run(path, with_tokenizer=tokenizer is None)
        model = model if dtype is None else model.to(dtype)
    else:
        model, own = load(path, dtype)
    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        found = tokenizer or own
    else:
        found = load_tokenizer(tokenizer)
    if found is None:
        raise ValueError(f"tokenizer: expected one, for {path} has none of its own")
    check_vocabulary(found, model.config.vocab_size)
    return model, found


def check_vocabulary(tokenizer: Tokenizer, tokens: int) -> None:
    """ValueError if the tokenizer has more tokens than the model."""
    if tokenizer.vocab_size > tokens:
        raise ValueError(
            f"tokenizer: expected at most the model's {tokens} tokens, got {tokenizer.vocab_size}"
        )


def load_run(
    path: str | os.PathLike[str], *, with_tokenizer: bool = True, average: bool = False
) -> tuple[LLaMA, Tokenizer | None]:
    """The newest whole checkpoint of a training run.

    Args:
        path: folder of the run (`out`).
        with_tokenizer: that of the run's training data, which has to be where it was, unchanged.
        average: the moving average of the weights instead of the weights.

    Raises:
        CheckpointError: there is none, or all are damaged.
        ValueError: no average was kept, or the data is not there.
        DataError: other data is there now.
    """
    folder = Path(path) / "checkpoints"
    checkpoints = CheckpointManager(folder)
    found = checkpoints.latest()
    if found is None:
        raise CheckpointError(f"{folder}: expected a checkpoint, there is none")
    shape = recorded_shape(found)
    if average and found.state["config"]["optimizer"].get("ema_decay") is None:
        raise ValueError(
            f"average: expected a run with optimizer.ema_decay, {path} kept no average"
        )
    model = LLaMA(shape)
    part = "average" if average else "model"
    weights = {f"{part}.{name}": weight.detach() for name, weight in model.named_parameters()}
    checkpoints.load(found, weights)
    return model.eval(), _tokenizer_of_run(found) if with_tokenizer else None


def _tokenizer_of_run(found: Checkpoint) -> Tokenizer:
    shards = Path(found.state["config"]["data"]["train"])
    if not shards.is_dir():
        raise ValueError(f"tokenizer: expected one, for the run's data is not at {shards}")
    data = TokenShards(shards)
    # Other data may be of another tokenizer, whose ids would mean other words to the model.
    learned = found.state.get("loader", {}).get("content_sha256", data.content_sha256)
    if data.content_sha256 != learned:
        raise DataError(
            f"{shards}: expected the data of {found.path}, content_sha256 {learned}, got other "
            f"data, {data.content_sha256}; say the model's tokenizer (--tokenizer PATH)"
        )
    tokenizer = tokenizer_of(data)
    source = data.tokenizer.get("chat_template", tokenizer.chat_template)
    if source is not None and not isinstance(source, str):
        raise DataError(f"{shards}: expected the chat template's source, got {source!r:.80}")
    tokenizer.chat_template = source
    return tokenizer
