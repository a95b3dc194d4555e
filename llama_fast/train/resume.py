"""Check whether a run may be resumed from a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from llama_fast.models.checkpoints.training import Checkpoint
from llama_fast.train.config import TrainConfig

# Options that may differ when a run is resumed; the others would change its results.
MAY_CHANGE = {
    "out", "keep_last", "checkpoint_every", "log_every", "device", "compile", "on_nan",
    "activation_checkpointing", "data.train", "data.valid", "data.num_workers", "data.verify",
    "valid_every", "valid_batches", "benchmarks", "eval_every", "num_questions", "report_to",
    "profile_steps",
}  # fmt: skip


def check_same(
    checkpoint: Checkpoint, config: TrainConfig, world_size: int, log: Callable[[str], object]
) -> None:
    """Check that a checkpoint was written with the same configuration.

    Args:
        checkpoint: the checkpoint to resume from.
        config: configuration of the resumed run.
        world_size: number of its processes.
        log: called with a line of text if `model.init_from` differs, which is not read again.

    Raises:
        ValueError: options differ that may not; the message names all of them.
    """
    changed = {}
    for name, old, new in _differences(checkpoint.state["config"], dataclasses.asdict(config)):
        if name == "model.init_from" and old is not None and new is not None:
            # The file may have been moved; it is not read again.
            log(f"model.init_from: was {old}, now {new}; the run is resumed from its checkpoint")
        elif not _may_change(name, checkpoint, config, world_size):
            changed[name] = f"{name} (was {old!r}, now {new!r})"
    if changed.keys() == {"steps"}:
        raise ValueError(
            f"steps: {config.out} was planned for {checkpoint.state['config']['steps']} steps, got "
            f"{config.steps}: the {config.optimizer.lr_schedule} schedule's learning rates depend "
            "on their number. To train further, start another run from this one's weights: "
            f"--out NEW --model.init-from {config.out}; runs with --optimizer.lr-schedule constant "
            "can be extended"
        )
    if changed:
        raise ValueError(
            f"out: {config.out} has a run with another configuration: "
            f"{'; '.join(changed[name] for name in sorted(changed))}; "
            "expected the same configuration, or another folder"
        )


def _may_change(name: str, checkpoint: Checkpoint, config: TrainConfig, world_size: int) -> bool:
    if name == "data.micro_batch_size":  # the batch may be the same on another number of ranks
        return bool(checkpoint.state["world_size"] != world_size)
    if name == "steps":  # the learning rates of earlier steps must not change
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
