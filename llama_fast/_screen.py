"""Shows the progress of a command: bars on a terminal, plain lines in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from llama_fast._terminal import console as new_console

__all__ = ["Bar", "Screen"]

# Width in columns of a table written to a pipe, which has no width.
PIPE_WIDTH = 110

# Called as progress(units done, total units, a few words on the state).
Bar = Callable[[int, int, str], None]


class Screen:
    """Headings, lines and progress bars on one rich console.

    Where the output is not a terminal, a bar becomes a single line with its text.
    """

    def __init__(self, console: Console | None = None) -> None:
        if console is None:
            if hasattr(sys.stdout, "reconfigure"):
                # A character outside the terminal's encoding must not end the command.
                sys.stdout.reconfigure(errors="replace")
            console = new_console()
            if not console.is_terminal:
                console = new_console(width=PIPE_WIDTH)
        self.console = console

    def heading(self, text: str) -> None:
        """Print the heading of a part."""
        self.console.print(Text(f"\n{text}", "bold cyan"))

    def line(self, text: str) -> None:
        """Print one line with rich markup; escape untrusted text in it."""
        self.console.print(text, soft_wrap=True, markup=True)

    def sentence(self, text: str) -> None:
        """Print untrusted prose: a terminal breaks it between words, a pipe gets one line."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    @contextmanager
    def bar(self, text: str, unit: str = "steps") -> Iterator[Bar]:
        """Show a progress bar while the block runs; ``unit`` "bytes" shows megabytes."""
        if not self.console.is_interactive:
            self.console.print(f"{text} ...")
            yield lambda done, total, state: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}", style="dim", markup=False),
        )
        scale, unit = (1e6, "MB") if unit == "bytes" else (1, unit)
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(
                text, total=None, count="", state=""
            )  # no total yet: it pulses

            def update(done: int, total: int, state: str) -> None:
                count = f"{done / scale:.0f}/{total / scale:.0f} {unit}"
                progress.update(task, completed=done, total=total, count=count, state=state)

            yield update
