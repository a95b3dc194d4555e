"""A task's name in a terminal's table, which breaks after its underscores."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.text import Text


class Name:
    """A name such as `agieval_sat_en`: on one line if it fits, else broken after an underscore.

    Args:
        name: the name.
        below: dim text on a line of its own below it.
    """

    def __init__(self, name: str, below: str = "") -> None:
        self.name, self.below = name, below

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, _pieces(self.name)), default=0)
        return Measurement(longest, max(len(self.name), len(self.below)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = [""]
        for piece in _pieces(self.name):
            if lines[-1] and len(lines[-1] + piece) > options.max_width:
                lines.append("")
            lines[-1] += piece
        yield Text("\n".join(lines), overflow="fold")
        if self.below:
            yield Text(self.below, style="not bold dim")


def _pieces(name: str) -> list[str]:
    return re.findall(r"[^_]*_+|[^_]+", name)
