"""Readers for files that may be damaged or hostile: JSON, JSON lines, text lines, hashes.

For any file, the caller gets either the content or one error, of the class it chose. The message
names the file and, for text, the line. The limits of `llama_fast._limits` bound
work and memory.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llama_fast._inside import inside
from llama_fast._limits import limit, raise_it

MAX_DEPTH = 100  # nesting of lists and objects; recursive code would fail beyond
DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)  # raised when a damaged gzip file is read
_BLOCK = 1 << 20  # bytes read at once


def read_json(
    path: str | os.PathLike[str],
    *,
    error: type[Exception] = ValueError,
    expected_type: type | None = dict,
    links: bool = True,
) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        error: class of the exception for bad content.
        expected_type: type of the outermost value: dict, list, or None for any.
        links: whether the file may be a symbolic link that leads out of its folder.

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be read.
        ValueError, or `error`: the file is not a regular file, is not JSON, has another outermost
            type, is larger than the limit "json", or is nested deeper than :data:`MAX_DEPTH`.
    """
    path, max_bytes = Path(path), limit("json")
    inside(path.parent, path.name, path, error, links=links)
    with path.open("rb") as file:
        is_small = os.fstat(file.fileno()).st_size <= max_bytes
        text = read_at_most(file, max_bytes) if is_small else None
    if text is None or len(text) > max_bytes:
        raise error(
            f"{path}: expected at most {max_bytes:,} bytes of JSON, got more; {raise_it('json')}"
        )
    return parse_json(text, str(path), error=error, expected_type=expected_type)


def read_json_lines(
    path: str | os.PathLike[str],
    *,
    error: type[Exception] = ValueError,
    expected_type: type | None = dict,
) -> Iterator[tuple[str, Any]]:
    """Yield the place (``FILE:LINE``) and the value of each line of a ``.jsonl`` file.

    Empty lines are skipped. A ``.gz`` is unpacked.

    Args:
        path: the file.
        error: class of the exception for bad content.
        expected_type: type of each value: dict, list, or None for any.

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be read.
        ValueError, or `error`: a line is not JSON, has another type, or is longer than the limit
            "line"; or the gzip file is damaged. The message names the file and the line.
    """
    for number, line in enumerate(read_lines(path, error), 1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, parse_json(line.rstrip(), place, error=error, expected_type=expected_type)


def parse_json(
    text: str | bytes,
    where: str,
    *,
    error: type[Exception] = ValueError,
    expected_type: type | None = None,
) -> Any:
    """Return the value of a JSON text; see :func:`read_json`.

    Args:
        text: JSON; bytes are UTF-8, UTF-16 or UTF-32.
        where: the file, and the line if the text is one of many; for the message.
        error, expected_type: see :func:`read_json`.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as problem:
        line = f":{problem.lineno}" if problem.lineno > 1 else ""
        raise error(f"{where}{line}: not JSON: {problem.msg} (column {problem.colno})") from None
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not UTF-8: {problem.reason} at byte {problem.start}") from None
    except ValueError as problem:  # a number with thousands of digits
        raise error(f"{where}: not JSON: {problem}") from None
    except RecursionError:
        raise error(_too_deep(where)) from None
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else (
        text.count("[") + text.count("{"))  # fmt: skip
    if opened > MAX_DEPTH and _is_deep(content):
        raise error(_too_deep(where))
    if expected_type is not None and not isinstance(content, expected_type):
        expected = "a JSON object" if expected_type is dict else "a JSON list"
        raise error(f"{where}: expected {expected}, got {type(content).__name__}")
    return content


def _too_deep(where: str) -> str:
    return f"{where}: expected JSON with at most {MAX_DEPTH} levels of nesting, got more"


def _is_deep(content: Any) -> bool:
    level = [content] if isinstance(content, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        lists = (each.values() if isinstance(each, dict) else each for each in level)
        level = [inner for each in lists for inner in each if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def open_binary(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading in binary mode; a ``.gz`` is unpacked."""
    path = Path(path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore


def read_lines(
    path: str | os.PathLike[str], error: type[Exception] = ValueError
) -> Iterator[bytes]:
    """Yield the lines of a file, each with its line feed; a ``.gz`` is unpacked.

    Lines are limited to the limit "line", because a small ``.gz`` can hold gigabytes.

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be read.
        ValueError, or `error`: a line is longer, or the gzip file is damaged; the message names the
            file.
    """
    max_bytes, number = limit("line"), 0
    with open_binary(path) as file:
        try:
            while line := file.readline(max_bytes + 1):
                number += 1
                if len(line) > max_bytes:
                    raise error(
                        f"{path}:{number}: expected a line of at most {max_bytes:,} bytes, got "
                        f"more; {raise_it('line')}"
                    )
                yield line
        except DAMAGED_GZIP as problem:
            raise error(f"{path}:{number + 1}: damaged gzip file: {problem}") from None


def read_at_most(file: IO[bytes], max_bytes: int) -> bytes:
    """Return the rest of a file, or its first `max_bytes` + 1 bytes if it is longer.

    It is read in blocks, because read(n) allocates n bytes even for a small file.
    """
    blocks, left = [], max_bytes + 1
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def checked_int(
    value: Any,
    where: str,
    *,
    minimum: int = 1,
    maximum: int,
    error: type[Exception] = ValueError,
) -> int:
    """Return `value` if it is an int in [minimum, maximum].

    Raises:
        ValueError, or `error`: `value` is anything else; the message begins with `where`.
    """
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or not minimum <= value <= maximum:
        raise error(f"{where}: expected an integer from {minimum} to {maximum}, got {value!r:.80}")
    return int(value)


def checked_positive(value: Any, where: str, *, error: type[Exception] = ValueError) -> float:
    """Return `value` as a float if it is a finite number above 0.

    Raises:
        ValueError, or `error`: `value` is anything else; the message begins with `where`.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if float(value) > 0 and math.isfinite(float(value)):
                return float(value)
    raise error(f"{where}: expected a positive number, got {value!r:.80}")


def is_panic(problem: BaseException) -> bool:
    """Whether an exception is a panic of a Rust library, whose class cannot be imported."""
    return type(problem).__module__ == "pyo3_runtime"


@contextlib.contextmanager
def no_panics(where: str, error: type[Exception]) -> Iterator[None]:
    """Turn a panic of a Rust library, which is not an :class:`Exception`, into `error`.

    tokenizers, tiktoken and safetensors panic on damaged content that they do not check.
    """
    try:
        yield
    except BaseException as problem:
        if not is_panic(problem):
            raise
        raise error(f"{where}: damaged: {str(problem)[:200]}") from None
