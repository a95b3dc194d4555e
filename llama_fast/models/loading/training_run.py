"""Loads the model of a training run, with the tokenizer of its training data."""

from __future__ import annotations

import os
from pathlib import Path

from llama_fast.data import DataError, TokenShards
from llama_fast.data.tokenizer import tokenizer_of
from llama_fast.tokenizers import Tokenizer

from ..checkpoints import training
from ..llama import LLaMA
from ..uninitialized import uninitialized

__all__ = ["is_run", "load_run"]


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is the folder of a training run that has written a checkpoint."""
    return (Path(path) / "checkpoints").is_dir()


def load_run(
    path: str | os.PathLike[str], *, with_tokenizer: bool = True, average: bool = False
) -> tuple[LLaMA, Tokenizer | None]:
    """Load the newest undamaged checkpoint of a training run, in evaluation mode on the CPU.

    Args:
        path: folder of the run (`out`).
        with_tokenizer: read the tokenizer of the run's training data, which must be unchanged and
            in its place.
        average: load the moving average of the weights instead of the weights.

    Raises:
        RunCheckpointError: there is no checkpoint, or all are damaged.
        ValueError: the run kept no average, or its training data does not exist.
        DataError: the training data has been replaced.
    """
    folder = Path(path) / "checkpoints"
    checkpoints = training.CheckpointReader(folder)
    found = checkpoints.latest()
    if found is None:
        raise training.RunCheckpointError(f"{folder}: expected a checkpoint, there is none")
    shape = training.recorded_shape(found)
    if average and found.state["config"]["optimizer"].get("ema_decay") is None:
        raise ValueError(
            f"average: expected a run with optimizer.ema_decay, {path} kept no average"
        )
    model = uninitialized(shape)
    part = "average" if average else "model"
    weights = {f"{part}.{name}": weight.detach() for name, weight in model.named_parameters()}
    checkpoints.load(found, weights)
    return model.eval(), _tokenizer_of_run(found) if with_tokenizer else None


def _tokenizer_of_run(found: training.Checkpoint) -> Tokenizer:
    shards = Path(found.state["config"]["data"]["train"])
    if not shards.is_dir():
        raise ValueError(f"tokenizer: expected one, for the run's data is not at {shards}")
    data = TokenShards(shards)
    # Replaced data may have another tokenizer, whose ids mean other words to the model.
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
