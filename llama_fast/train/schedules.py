"""Learning rates over a run: warm-up, then cosine, linear, warm-up-stable-decay, or constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("cosine", "linear", "wsd", "constant")


@dataclass(frozen=True)
class Schedule:
    """Factor on the peak learning rate, a function of the step alone.

    Attributes:
        kind: what comes after the warm-up.
            ``cosine``: half a cosine down to `final` (Loshchilov & Hutter 2017, arXiv:1608.03983).
            ``linear``: a line down to `final`.
            ``wsd``: stays at the peak, then 1 - sqrt(progress) down to `final` over the last
            `decay` of the run (Hu et al. 2024, arXiv:2404.06395; the square root is that of Hägele
            et al. 2024, arXiv:2405.18392).
            ``constant``: stays at the peak.
        steps: of the whole run.
        warmup: steps of a line from 0 up to the peak, which step `warmup` - 1 reaches.
        final: factor at the end of the run.
        decay: of ``wsd``, the share of the run that decays.

    Raises:
        ValueError: an unknown kind, numbers out of their range.

    Example:
        >>> schedule = Schedule("cosine", steps=100, warmup=10, final=0.1)
        >>> [round(schedule(step), 3) for step in (0, 9, 55, 100)]
        [0.1, 1.0, 0.55, 0.1]
    """

    kind: str = "cosine"
    steps: int = 1000
    warmup: int = 0
    final: float = 0.1
    decay: float = 0.2

    def __post_init__(self) -> None:
        for name, expected, ok in (
            ("kind", f"one of {', '.join(KINDS)}", self.kind in KINDS),
            ("steps", "at least 1", self.steps >= 1),
            ("warmup", f"0 <= warmup <= steps = {self.steps}", 0 <= self.warmup <= self.steps),
            ("final", "0 <= final <= 1", 0 <= self.final <= 1),
            ("decay", "0 <= decay <= 1", 0 <= self.decay <= 1),
        ):
            if not ok:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def __call__(self, step: int) -> float:
        """The factor of step number `step`, counted from 0; `final` beyond the end."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant":
            return 1.0
        begin: float = self.warmup
        if self.kind == "wsd":
            begin = max(begin, self.steps * (1 - self.decay))
        if step < begin:
            return 1.0
        progress = min(1.0, (step - begin) / max(1.0, self.steps - begin))
        if self.kind == "cosine":
            shape = (1 + math.cos(math.pi * progress)) / 2
        elif self.kind == "linear":
            shape = 1 - progress
        else:
            shape = 1 - math.sqrt(progress)
        return self.final + (1 - self.final) * shape
