"""Progress display at the bottom of the terminal, and the throughput that it shows."""

from __future__ import annotations

import sys
import time
from collections import deque
from statistics import median

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llama_fast._format import duration
from llama_fast._terminal import console as new_console
from llama_fast.train.metrics import StepMetrics

WINDOW = 50  # number of steps from which throughput and remaining time are estimated


class ThroughputMeter:
    """Estimates throughput and remaining time from the last :data:`WINDOW` steps.

    Args:
        steps: number of steps in the run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._last: deque[StepMetrics] = deque(maxlen=WINDOW)
        self._training = 0.0
        self._begin = time.perf_counter()

    def add(self, step: StepMetrics, now: float | None = None) -> None:
        """Add a step that ended at `now`, a value of ``time.perf_counter``; default: just now."""
        self._last.append(step)
        self._training += step.seconds
        self._elapsed = (time.perf_counter() if now is None else now) - self._begin

    @property
    def tokens_per_second(self) -> float:
        """Mean throughput over the last steps."""
        return sum(s.tokens for s in self._last) / sum(s.seconds for s in self._last)

    @property
    def joules_per_token(self) -> float | None:
        """Mean energy per token over the last steps; None if energy cannot be measured."""
        joules = [s.joules for s in self._last if s.joules is not None]
        if len(joules) < len(self._last):
            return None
        return sum(joules) / sum(s.tokens for s in self._last)

    @property
    def mfu(self) -> float | None:
        """Mean MFU over the last steps, weighted by time; None if it is unknown."""
        shares = [s.mfu * s.seconds for s in self._last if s.mfu is not None]
        if len(shares) < len(self._last):
            return None
        return sum(shares) / sum(s.seconds for s in self._last)

    @property
    def seconds_left(self) -> float:
        """Remaining steps times the median step time, plus the share of other work; in seconds."""
        others = max(1.0, self._elapsed / self._training)
        left = self.steps - self._last[-1].step
        return median(s.seconds for s in self._last) * left * others


def facts(step: StepMetrics, pace: ThroughputMeter, width: int) -> str:
    """Return loss, speed, MFU, memory and energy of a step in one line of a terminal.

    A narrow terminal gets the more important ones, each of them whole: that energy cannot be
    measured goes first, then MFU, memory and energy.

    Args:
        step: the step.
        pace: the throughput until then.
        width: number of columns.
    """
    energy = pace.joules_per_token
    parts = [  # (the larger, the sooner it is left out; text)
        (0, f"loss {step.loss:.4f}"),
        (1, f"{pace.tokens_per_second:,.0f} tokens/s"),
        (4, "" if pace.mfu is None else f"MFU {pace.mfu:.0%}"),
        (3, "" if step.memory is None else f"{step.memory / 1e9:.2f} GB"),
        (5, "energy not measurable") if energy is None else (2, f"{energy:.2g} J/token"),
    ]
    shown = [part for part in parts if part[1]]
    while len(shown) > 1 and len(" · ".join(text for _, text in shown)) > width:
        shown.remove(max(shown))
    return " · ".join(text for _, text in shown)


class ProgressDisplay:
    """Two lines at the bottom of a terminal; other output is printed above them.

    Args:
        steps: number of steps in the run.
        done: number of steps done.
        console: the console to display on; None uses standard error.
    """

    def __init__(self, steps: int, done: int, console: Console | None = None) -> None:
        self._bar = ProgressBar(total=steps, completed=done)
        self._steps = steps
        self._live = Live(
            Text(f"step {done}/{steps}: starting"),
            console=console or new_console(stderr=True),
            refresh_per_second=4,
            # If standard output is a file, its lines are not redirected.
            redirect_stdout=sys.stdout.isatty(),
            transient=True,
        )
        self._live.start()

    def update(self, step: StepMetrics, pace: ThroughputMeter) -> None:
        """Show the metrics of a step."""
        self._bar.update(step.step)
        line = Table.grid(padding=(0, 1), expand=True)
        for _ in range(2):
            line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        for _ in range(2):
            line.add_column(no_wrap=True)
        line.add_row(
            "step",
            f"{step.step}/{self._steps}",
            self._bar,
            f"{step.step / self._steps:.0%}",
            f"{duration(pace.seconds_left)} left",
        )
        text = facts(step, pace, self._live.console.width)
        self._live.update(Group(line, Text(text, no_wrap=True)))

    def close(self) -> None:
        """Remove the display."""
        self._live.stop()


def progress_display(steps: int, done: int) -> ProgressDisplay | None:
    """Create a display if standard error is a terminal that supports it."""
    console = new_console(stderr=True)
    return ProgressDisplay(steps, done, console) if console.is_interactive else None
