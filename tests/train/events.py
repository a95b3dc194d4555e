"""Reads what TensorBoard shows of a run."""

from __future__ import annotations

from pathlib import Path


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)]
            for tag in shown.Tags()["scalars"]}  # fmt: skip
