"""The progress table of a running evaluation."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llama_fast._format import duration
from llama_fast._screen import PIPE_WIDTH
from llama_fast._terminal import console as new_console
from llama_fast.eval.report.scores import score_of

# Seconds between two lines of a task if the output is not a terminal.
LINE_EVERY = 30.0
# Finished tasks that stay visible: MMLU alone has 57.
FINISHED_ROWS = 12


@dataclass
class _Task:
    total: int
    done: int = 0
    begun: float | None = None
    ended: float | None = None
    score: str = ""
    failed: bool = False
    last_line: float = field(default=0.0, repr=False)

    def seconds(self, now: float) -> float:
        return 0.0 if self.begun is None else (self.ended or now) - self.begun

    def rate(self, now: float) -> float | None:
        """Questions per second; None before the first one."""
        seconds = self.seconds(now)
        return self.done / seconds if self.done and seconds > 0 else None


def _rate(rate: float) -> str:
    return f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"


class LiveTable:
    """Progress of an evaluation: a table on a terminal, plain lines elsewhere.

    Args:
        tasks: task -> number of questions, so that the remaining time of all tasks is known from
            the start. Other tasks are added when they start.
        console: standard output if None.
        unit: name of what is counted.

    Example:
        >>> with LiveTable({"piqa": 1838}) as table:
        ...     table.start_task("piqa", 1838)
        ...     table.advance("piqa", 64)
        ...     table.finish("piqa", {"acc,none": 0.68, "acc_stderr,none": 0.011})
    """

    def __init__(
        self,
        tasks: Mapping[str, int] | None = None,
        console: Console | None = None,
        unit: str = "questions",
    ) -> None:
        if console is None:
            console = new_console()
            if not console.is_terminal:
                console = new_console(width=PIPE_WIDTH)
        self.console, self.unit = console, unit
        self._tasks = {name: _Task(n) for name, n in (tasks or {}).items()}
        # The display's thread reads while the evaluation's thread writes.
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> LiveTable:
        if self.console.is_interactive:
            self._live = Live(
                self,
                console=self.console,
                refresh_per_second=4,
                redirect_stdout=self.console.is_terminal,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start_task(self, name: str, n: int) -> None:
        """Report that a task of `n` questions starts."""
        with self._lock:
            task = self._tasks.setdefault(name, _Task(n))
            task.total, task.begun = n, time.perf_counter()
            task.last_line = task.begun
        self._print_line(f"{name}: {n:,} {self.unit} ...")

    def advance(self, name: str, n: int = 1) -> None:
        """Report that `n` more questions of a started task are done."""
        now = time.perf_counter()
        with self._lock:
            task = self._tasks[name]
            task.done = min(task.done + n, task.total)
            due = now - task.last_line >= LINE_EVERY and task.done < task.total
            if due:
                task.last_line = now
            line = f"{name}: {task.done:,}/{task.total:,}, {self._speed(task, now)}"
        if due:
            self._print_line(line)

    def finish(self, name: str, metrics: Mapping[str, Any], key: str | None = None) -> None:
        """Report that a task is done.

        Args:
            name: name of the task.
            metrics: the harness's `results[task]`.
            key: the metric of its score; see :func:`~.scores.score_of`.
        """
        score = score_of(metrics, key)
        text = "no score" if score is None else f"{score.metric} {score}"
        self._end(name, text, failed=False)

    def fail(self, name: str, reason: str) -> None:
        """Report that a task was not scored."""
        self._end(name, f"not scored: {reason}", failed=True)

    def _end(self, name: str, text: str, failed: bool) -> None:
        now = time.perf_counter()
        with self._lock:
            task = self._tasks.setdefault(name, _Task(0))
            task.ended, task.score, task.failed = now, text, failed
            if failed:
                task.total = task.done
            else:
                task.done = task.total
            rate = task.rate(now)
            took = duration(task.seconds(now))
        speed = "" if rate is None else f" ({_rate(rate)} {self.unit}/s, {took})"
        self._print_line(f"{name}: {text}{speed}")

    def _print_line(self, line: str) -> None:
        if self._live is None:
            self.console.print(line, soft_wrap=True, markup=False)

    def _speed(self, task: _Task, now: float) -> str:
        rate = task.rate(now)
        if rate is None:
            return "starting"
        left = duration((task.total - task.done) / rate)
        return f"{_rate(rate)} {self.unit}/s, {left} left"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield self._render(time.perf_counter(), options.max_width)

    def _render(self, now: float, width: int) -> Table:
        # A narrow terminal drops the bar first, then the speed.
        shown = [True, width >= 100, True, width >= 76, True, True]
        name_width = 30 if width >= 100 else max(8, width - (62 if shown[3] else 48))
        table = Table(box=None, padding=(0, 1), header_style="dim")
        columns: list[dict[str, Any]] = [
            {"header": "task", "no_wrap": True},
            {"header": "", "width": max(6, min(24, width - 86))},
            {"header": "done", "justify": "right", "no_wrap": True},
            {"header": f"{self.unit}/s", "justify": "right", "no_wrap": True},
            {"header": "left", "justify": "right", "no_wrap": True},
            {"header": "score", "no_wrap": True, "overflow": "ellipsis"},
        ]
        for column in compress(columns, shown):
            table.add_column(**column)

        def row(name: str, task: _Task, style: str | None = None) -> None:
            # The names of a group's tasks differ at the end.
            name = name if len(name) <= name_width else f"…{name[1 - name_width :]}"
            table.add_row(*compress(self._row(name, task, now), shown), style=style)

        ended = [name for name, task in self._tasks.items() if task.ended is not None]
        hidden = ended[:-FINISHED_ROWS]
        waiting = [name for name, task in self._tasks.items() if task.begun is None]
        if hidden:
            table.add_row(Text(f"{len(hidden)} finished", style="dim"))
        for name, task in self._tasks.items():
            if name not in hidden and (task.begun is not None or task.ended is not None):
                row(name, task)
        waiting = [name for name in waiting if self._tasks[name].ended is None]
        if waiting:
            table.add_row(Text(f"{len(waiting)} to come", style="dim"))
        if len(self._tasks) > 1:
            table.add_section()
            row("total", self._total(now), style="bold")
        return table

    def _row(self, name: str, task: _Task, now: float) -> tuple[Any, ...]:
        bar = ProgressBar(total=max(1, task.total), completed=task.done)
        rate = task.rate(now)
        speed = "" if rate is None else _rate(rate)
        left = ""
        if task.ended is None and rate is not None:
            left = duration((task.total - task.done) / rate)
        elif task.ended is not None and task.begun is not None:
            left = f"({duration(task.seconds(now))})"
        style = "red" if task.failed else "green"
        count = f"{task.done:,}/{task.total:,}"
        score = Text(task.score, style=style)
        if task.begun is not None and task.ended is None and not task.done:
            score = Text("preparing", style="dim")  # building thousands of prompts takes a while
        return Text(name), bar, count, speed, left, score

    def _total(self, now: float) -> _Task:
        tasks = self._tasks.values()
        begun = [task.begun for task in tasks if task.begun is not None]
        ended = [task.ended for task in tasks if task.ended is not None]
        over = len(ended) == len(self._tasks)
        return _Task(
            sum(task.total for task in tasks),
            sum(task.done for task in tasks),
            min(begun, default=None),
            max(ended) if over else None,
        )
