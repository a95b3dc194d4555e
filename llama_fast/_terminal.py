"""What is shown on a terminal: text of models and of files is shown, and steers nothing.

A terminal takes some characters for orders: to write to the clipboard, change the window's title,
move the cursor over what stands there. Models write such characters, and so do files. All that is
printed and may hold text of theirs goes through this module. A file or a pipe gets every byte as
it is.
"""

from __future__ import annotations

import re
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# C0 but tab and line feed, DEL, C1 (one of which begins an order by itself), and what turns the
# direction of the text around it.
_ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def neutral(text: str) -> str:
    r"""The text with a name such as ``\x1b`` for each character that a terminal obeys."""

    def name(match: re.Match[str]) -> str:
        number = ord(match.group())
        return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"

    return _ORDERS.sub(name, text.replace("\r\n", "\n"))


def for_stream(text: str, stream: TextIO | None) -> str:
    """The text as it may be written to a stream: neutral if that is a terminal."""
    try:
        return neutral(text) if stream is not None and stream.isatty() else text
    except ValueError:  # a closed stream
        return text


def show(text: str = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text that may hold what a model or a file says, and flush.

    Args:
        text: without markup.
        end: printed behind it.
        file: standard output if None.
    """
    stream = sys.stdout if file is None else file
    print(for_stream(text, stream), end=end, file=stream, flush=True)


def console(**options: Any) -> Console:
    """A console of rich on which strings are text: without markup, emoji and highlighting.

    Markup of our own is printed as ``rich.text.Text``. On a terminal every text is neutral, in
    tables and live displays too.

    Args:
        options: of ``rich.console.Console``.
    """
    return _class()(**{"markup": False, "emoji": False, "highlight": False, **options})


@cache
def _class() -> Any:
    from rich.console import Console
    from rich.segment import Segment

    class Neutral(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                # What moves the cursor on purpose is marked as such.
                if segment.control is None and self.is_terminal:
                    segment = Segment(neutral(segment.text), segment.style)
                yield segment

    return Neutral


def neutral_warnings() -> None:
    """Print warnings, which quote files, neutrally from now on."""
    stock = warnings.formatwarning
    if getattr(stock, "neutral", False):
        return

    def form(*arguments: Any, **options: Any) -> str:
        return for_stream(stock(*arguments, **options), sys.stderr)

    form.neutral = True  # type: ignore[attr-defined]
    warnings.formatwarning = form
