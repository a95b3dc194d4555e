"""Whether a run may go on from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from llama_fast.models.checkpoints.training import Checkpoint
from llama_fast.train.config import TrainConfig

# What a resumed run may change; anything else would make another run of it.
MAY_CHANGE = {
    "out", "keep_last", "checkpoint_every", "log_every", "device", "compile", "on_nan",
    "activation_checkpointing", "data.train", "data.valid", "data.num_workers", "data.verify",
    "valid_every", "valid_batches", "benchmarks", "eval_every", "num_questions", "report_to",
    "profile_steps",
}  # fmt: skip


def check_same(
    found: Checkpoint, config: TrainConfig, world_size: int, log: Callable[[str], object]
) -> None:
    """See that a checkpoint is of the run that `config` describes.

    Args:
        found: the checkpoint.
        config: of the run that is to go on from it.
        world_size: number of processes that resume.
        log: called with a line if other weights to begin with are named, which are not read.

    Raises:
        ValueError: it is of another configuration; names what differs.
    """
    changed = {}
    for name, old, new in _differences(found.state["config"], dataclasses.asdict(config)):
        if name == "model.init_from" and old is not None and new is not None:
            # Weights may have moved since; none are read any more.
            log(f"model.init_from: was {old}, now {new}; the run goes on from its checkpoint")
        elif not _may_change(name, found, config, world_size):
            changed[name] = f"{name} (was {old!r}, now {new!r})"
    if changed:
        raise ValueError(
            f"out: {config.out} has a run of another configuration: "
            f"{'; '.join(changed[name] for name in sorted(changed))}; "
            "expected the same one, or another folder"
        )


def _may_change(name: str, found: Checkpoint, config: TrainConfig, world_size: int) -> bool:
    if name == "data.micro_batch_size":  # on other ranks the same batch may take another one
        return bool(found.state["world_size"] != world_size)
    if name == "steps":  # more of them may leave the learning rates of those done as they were
        return config.optimizer.lr_schedule == "constant"
    return name in MAY_CHANGE or name.startswith("parallel.")


def _differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in old.keys() | new.keys():
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}", a, b
