"""Fine-tunes the model from the same start on stock PyTorch ops and on ours.

Each run is a separate process (``finetune_side.py``) with the same seed, data and settings. The
sides alternate in going first, because the speed of a machine changes over time. Speed and memory
are medians over all rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass

from llama_fast.demo.finetune_side import FinetuneSettings

__all__ = ["SIDES", "Comparison", "SideResult", "TrainingError", "compare", "run_side"]

# Name of each side -> backend.
SIDES = {"torch": "torch", "llama_fast": "auto"}


class TrainingError(RuntimeError):
    """A training process failed; the message quotes the end of its output."""


@dataclass(frozen=True)
class SideResult:
    """The measurements of one run of one side.

    Attributes:
        side: "torch" or "llama_fast".
        losses, seconds: loss and duration of each step.
        held_out_before, held_out_after: loss on held-out text before and after training.
        resident: RSS in bytes before the first step (weights, Python, libraries).
        peak: largest RSS in bytes during the steps.
    """

    side: str
    losses: list[float]
    seconds: list[float]
    held_out_before: float
    held_out_after: float
    resident: int
    peak: int


@dataclass(frozen=True)
class Comparison:
    """All runs, and statistics of each side."""

    settings: FinetuneSettings
    runs: list[SideResult]

    def of(self, side: str) -> list[SideResult]:
        """The runs of one side, in the order they ran."""
        return [run for run in self.runs if run.side == side]

    def rate(self, *runs: SideResult) -> float:
        """Tokens per second of the median step of ``runs``, without their first (a warm-up)."""
        steps = [seconds for run in runs for seconds in (run.seconds[1:] or run.seconds)]
        return self.settings.batch * self.settings.length / statistics.median(steps)

    def tokens_per_second(self, side: str) -> float:
        """:meth:`rate` of all runs of one side."""
        return self.rate(*self.of(side))

    def peak(self, side: str) -> float:
        """Median over rounds of the peak resident memory, bytes."""
        return statistics.median(run.peak for run in self.of(side))

    def largest_loss_difference(self) -> float:
        """The largest difference between the sides' losses in the first round."""
        pairs = zip(self.of("torch")[0].losses, self.of("llama_fast")[0].losses, strict=True)
        return max(abs(a - b) for a, b in pairs)


def compare(
    settings: FinetuneSettings,
    rounds: int,
    progress: Callable[[int, int, str], None] = lambda done, total, state: None,
) -> Comparison:
    """Run both sides ``rounds`` times; ``settings.backend`` is replaced by that of each side.

    Args:
        settings: the settings of the training.
        rounds: number of runs of each side.
        progress: called as ``progress(steps done, number of steps, short description)``.
    """
    total = 2 * rounds * settings.steps
    runs: list[SideResult] = []
    for turn in range(rounds):
        order = list(SIDES) if turn % 2 == 0 else list(SIDES)[::-1]
        for side in order:
            before = len(runs) * settings.steps
            progress(before, total, f"{side}: loading")

            def step_done(step: int, loss: float, side: str = side, before: int = before) -> None:
                progress(before + step + 1, total, f"{side}: loss {loss:.3f}")

            runs.append(run_side(side, settings, step_done))
    return Comparison(settings, runs)


def run_side(
    side: str,
    settings: FinetuneSettings,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> SideResult:
    """Run one side once in a separate process.

    Args:
        side: a key of ``SIDES``.
        settings: the settings of the training; the backend is replaced by the side's.
        progress: called with (step, loss) after each step.

    Raises:
        TrainingError: the process failed; the message quotes the end of its output.
    """
    argument = json.dumps(asdict(settings) | {"backend": SIDES[side]})
    command = [sys.executable, "-m", "llama_fast.demo.finetune_side", argument]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings.threads)}
    losses, seconds = [], []
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            for line in child.stdout or ():
                record = json.loads(line)
                if "ready" in record:
                    before = record
                elif "step" in record:
                    losses.append(record["loss"])
                    seconds.append(record["seconds"])
                    progress(record["step"], record["loss"])
                else:
                    after = record
            code = child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if code != 0 or not after:
            errors.seek(0)
            output = "".join(errors.readlines()[-15:])
            raise TrainingError(f"fine-tuning on {side} ended with exit code {code}:\n{output}")
    return SideResult(
        side,
        losses,
        seconds,
        before["held_out"],
        after["held_out"],
        int(before["resident"]),
        int(after["peak"]),
    )
