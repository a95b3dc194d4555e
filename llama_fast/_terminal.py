"""Prints untrusted text without letting its control characters reach the terminal.

Control sequences can write to the clipboard, change the window's title and move the cursor. Texts
from models and files may contain them, so all output that may quote either goes through this
module. Files and pipes get the text unchanged.
"""

from __future__ import annotations

import re
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# C0 except tab and line feed, DEL, C1 (which includes a sequence introducer), and characters that
# change the direction of text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def neutral(text: str) -> str:
    r"""The text with control characters replaced by their names, such as ``\x1b``."""

    def name(match: re.Match[str]) -> str:
        number = ord(match.group())
        return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"

    return _CONTROL.sub(name, text.replace("\r\n", "\n"))


def for_stream(text: str, stream: TextIO | None) -> str:
    """The text to write to a stream: neutralised if it is a terminal."""
    try:
        return neutral(text) if stream is not None and stream.isatty() else text
    except ValueError:  # a closed stream
        return text


def show(text: str = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print untrusted text and flush.

    Args:
        text: the text, which is printed without markup.
        end: text to print after it.
        file: the stream; None for standard output.
    """
    stream = sys.stdout if file is None else file
    print(for_stream(text, stream), end=end, file=stream, flush=True)


def status(text: str) -> None:
    """Print a line on standard error if that is a terminal: what the program is doing now."""
    if sys.stderr is not None and sys.stderr.isatty():
        show(f"{text} ...", file=sys.stderr)


def console(**options: Any) -> Console:
    """A rich console that prints strings without markup, emoji and highlighting.

    Use ``rich.text.Text`` for styles. On a terminal all text is neutralised, in tables and live
    displays too.

    Args:
        options: options of ``rich.console.Console``.
    """
    return _class()(**{"markup": False, "emoji": False, "highlight": False, **options})


@cache
def _class() -> Any:
    from rich.console import Console
    from rich.segment import Segment

    class Neutral(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                # Control segments are rich's own.
                if segment.control is None and self.is_terminal:
                    segment = Segment(neutral(segment.text), segment.style)
                yield segment

    return Neutral


def warnings_as_lines(program: str) -> None:
    """Print warnings as ``program: warning: text``, without the source line that issued them.

    They may quote files, so they are neutralised. For a command: its user did not write the code.

    Args:
        program: name of the program.
    """

    def form(message: Any, *arguments: Any, **options: Any) -> str:
        text = str(message).replace("\n", " ")
        return for_stream(f"{program}: warning: {text}\n", sys.stderr)

    warnings.formatwarning = form
