"""Reading what others wrote: JSON, long lines, and calls into libraries that panic.

Whatever a file holds, a caller gets its content or one error of the class that it asked for, whose
message names the file. Work and memory are bounded by the limits of `llama_fast._limits`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llama_fast._inside import inside
from llama_fast._limits import limit, raise_it

DEPTH = 100  # levels of lists and objects in each other; more end in a RecursionError somewhere


def read_json(
    path: str | os.PathLike[str],
    *,
    error: type[Exception] = ValueError,
    kind: type | None = dict,
    links: bool = True,
) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        error: class of the exception.
        kind: what the content has to be: dict, list, or None for anything.
        links: whether the file may be a link to one in another folder.

    Raises:
        FileNotFoundError, OSError: it is not there, or cannot be read.
        ValueError, or `error`: no regular file, no JSON, of another kind, larger than the limit
            "json", or nested deeper than :data:`DEPTH`.
    """
    path, most = Path(path), limit("json")
    inside(path.parent, path.name, path, error, links=links)
    with path.open("rb") as file:
        text = read_at_most(file, most) if _size(file) <= most else None
    if text is None or len(text) > most:
        raise error(
            f"{path}: expected at most {most:,} bytes of JSON, got more; {raise_it('json')}"
        )
    return parse_json(text, str(path), error=error, kind=kind)


def parse_json(
    text: str | bytes, where: str, *, error: type[Exception] = ValueError, kind: type | None = None
) -> Any:
    """The content of a JSON text; see :func:`read_json`.

    Args:
        text: JSON; bytes are UTF-8, 16 or 32.
        where: file, and line if it is one of many, for the message.
        error, kind: see :func:`read_json`.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as problem:
        line = f":{problem.lineno}" if problem.lineno > 1 else ""
        raise error(f"{where}{line}: not JSON: {problem.msg} (column {problem.colno})") from None
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8: {problem.reason} at byte {problem.start}") from None
    except ValueError as problem:  # a number of thousands of digits
        raise error(f"{where}: not JSON: {problem}") from None
    except RecursionError:
        raise error(_too_deep(where)) from None
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else (
        text.count("[") + text.count("{"))  # fmt: skip
    if opened > DEPTH and _is_deep(content):
        raise error(_too_deep(where))
    if kind is not None and not isinstance(content, kind):
        expected = "a JSON object" if kind is dict else "a JSON list"
        raise error(f"{where}: expected {expected}, got {type(content).__name__}")
    return content


def _too_deep(where: str) -> str:
    return f"{where}: expected JSON of at most {DEPTH} levels in each other, got more"


def _is_deep(content: Any) -> bool:
    level = [content] if isinstance(content, (dict, list)) else []
    for _ in range(DEPTH):
        lists = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for each in lists for inner in each if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def lines_of(
    file: IO[bytes], where: str | os.PathLike[str], error: type[Exception] = ValueError
) -> Iterator[bytes]:
    """The lines of a file, none longer than the limit "line": a small .gz may hold gigabytes.

    Raises:
        ValueError, or `error`: a line is longer; names file and line.
    """
    most, number = limit("line"), 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise error(
                f"{where}, line {number}: expected at most {most:,} bytes, got more; "
                f"{raise_it('line')}"
            )
        yield line


def read_at_most(file: IO[bytes], most: int) -> bytes:
    """What a file holds, or its first `most` + 1 bytes where it holds more than `most`.

    In pieces: read() sets as much memory aside as it is asked for, however small the file.
    """
    pieces, left = [], most + 1
    while left > 0 and (piece := file.read(min(left, 1 << 20))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def whole_number(
    value: Any, where: str, *, least: int = 1, most: int, error: type[Exception] = ValueError
) -> int:
    """`value`, if it is an int in [least, most]; else an error that begins with `where`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise error(f"{where}: expected a whole number from {least} to {most}, got {value!r:.80}")
    return value


def positive_number(value: Any, where: str, *, error: type[Exception] = ValueError) -> float:
    """`value` as a float, if it is a finite number above 0; else an error as above."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if float(value) > 0 and math.isfinite(float(value)):
                return float(value)
    raise error(f"{where}: expected a positive number, got {value!r:.80}")


def is_panic(problem: BaseException) -> bool:
    """Whether an exception is a panic of a library in Rust; its class cannot be imported."""
    return type(problem).__module__ == "pyo3_runtime"


@contextlib.contextmanager
def no_panics(where: str, error: type[Exception]) -> Iterator[None]:
    """Turn a panic of a library in Rust, which is no :class:`Exception`, into `error`.

    tokenizers, tiktoken and safetensors panic where damaged content breaks what they assume.
    """
    try:
        yield
    except BaseException as problem:
        if not is_panic(problem):
            raise
        raise error(f"{where}: damaged: {str(problem)[:200]}") from None
