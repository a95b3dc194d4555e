"""Learning-rate schedules: warm-up, then cosine, linear, warm-up-stable-decay, or constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

ScheduleName = Literal["cosine", "linear", "wsd", "constant"]


@dataclass(frozen=True)
class LRSchedule:
    """Learning rate as a fraction of the peak; it depends on the step only.

    Attributes:
        lr_schedule: shape after the warm-up.
            ``cosine``: half a cosine down to `min_lr_ratio` (Loshchilov & Hutter 2017,
            arXiv:1608.03983).
            ``linear``: linear decay to `min_lr_ratio`.
            ``wsd``: constant, then 1 - sqrt(progress) down to `min_lr_ratio` over the last
            `decay_ratio` of the run (Hu et al. 2024, arXiv:2404.06395; the square root is that of
            Hägele et al. 2024, arXiv:2405.18392).
            ``constant``: stays at the peak.
        steps: optimizer steps in the run.
        warmup_steps: steps of linear warm-up; step `warmup_steps` - 1 is the first at the peak.
        min_lr_ratio: fraction of the peak at the end of the run.
        decay_ratio: fraction of the run over which ``wsd`` decays.

    Raises:
        ValueError: the schedule is unknown, or a number is out of its range.

    Example:
        >>> schedule = LRSchedule("cosine", steps=100, warmup_steps=10, min_lr_ratio=0.1)
        >>> [round(schedule(step), 3) for step in (0, 9, 55, 100)]
        [0.1, 1.0, 0.55, 0.1]
    """

    lr_schedule: ScheduleName = "cosine"
    steps: int = 1000
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1
    decay_ratio: float = 0.2

    def __post_init__(self) -> None:
        names = get_args(ScheduleName)
        for name, expected, ok in (
            ("lr_schedule", f"one of {', '.join(names)}", self.lr_schedule in names),
            ("steps", "at least 1", self.steps >= 1),
            ("warmup_steps", f"0 <= warmup_steps <= steps = {self.steps}",
             0 <= self.warmup_steps <= self.steps),
            ("min_lr_ratio", "0 <= min_lr_ratio <= 1", 0 <= self.min_lr_ratio <= 1),
            ("decay_ratio", "0 <= decay_ratio <= 1", 0 <= self.decay_ratio <= 1),
        ):  # fmt: skip
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def __call__(self, step: int) -> float:
        """Fraction of the peak at step `step`, counted from 0; `min_lr_ratio` after the end."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.lr_schedule == "constant":
            return 1.0
        decay_start: float = self.warmup_steps
        if self.lr_schedule == "wsd":
            decay_start = max(decay_start, self.steps * (1 - self.decay_ratio))
        if step < decay_start:
            return 1.0
        progress = min(1.0, (step - decay_start) / max(1.0, self.steps - decay_start))
        if self.lr_schedule == "cosine":
            remaining = (1 + math.cos(math.pi * progress)) / 2
        elif self.lr_schedule == "linear":
            remaining = 1 - progress
        else:
            remaining = 1 - math.sqrt(progress)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * remaining
