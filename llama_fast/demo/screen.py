"""What the demo shows while it works: bars on a terminal, plain lines in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bar", "Screen"]

# Called with (units done, units in all, a few words on the state); bars pass it to the workers.
Bar = Callable[[int, int, str], None]


class Screen:
    """Headings, lines and progress bars on one rich console.

    Where the output is no terminal, a bar becomes a single line that names the work.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = Console(highlight=False) if console is None else console

    def heading(self, text: str) -> None:
        """A line that starts a part of the demo."""
        self.console.print(f"\n[bold cyan]{text}[/]")

    def line(self, text: str) -> None:
        """One line of findings; rich markup is understood."""
        self.console.print(text)

    @contextmanager
    def bar(self, text: str, unit: str = "steps") -> Iterator[Bar]:
        """A progress bar that goes away when the work is done; ``unit`` "bytes" shows megabytes."""
        if not self.console.is_terminal:
            self.console.print(f"{text} ...")
            yield lambda done, total, state: None
            return
        count = (
            DownloadColumn()
            if unit == "bytes"
            else TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit)
        )
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            count,
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[state]}[/]"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(text, total=1, state="")
            yield lambda done, total, state: progress.update(
                task, completed=done, total=total, state=state
            )
