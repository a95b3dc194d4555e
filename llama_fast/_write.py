"""Files that appear whole or not at all, and that nothing in the folder leads elsewhere.

A folder that somebody else made may hold links under the names that are about to be written. A file
is therefore made anew, under a name that nobody can guess, and renamed: a rename replaces a link
and does not follow it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)  # neither on Windows


def partial_name(path: Path) -> Path:
    """A name beside `path` for it as long as it is not complete; no other process has the same."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """A new file that takes its name, and the place of what has it, when the block ends.

    A kill, an error or a full disk in between leaves the old file, or none. What was written is on
    the disk before the name changes.

    Args:
        path: of the file; its folder is there.
        mode: "w" (UTF-8 unless `options` say otherwise) or "wb".
        options: of :func:`open`.

    Raises:
        OSError: it can't be written.
    """
    path = Path(path)
    partial = partial_name(path)
    if "b" not in mode:
        options.setdefault("encoding", "utf-8")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINKS, 0o666)
    try:
        with open(descriptor, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: str | os.PathLike[str], parts: str | Iterable[str]) -> None:
    """Write a text file whole or not at all; see :func:`replacing`.

    A lone surrogate in a model's text is written with a backslash.

    Raises:
        OSError: it can't be written.
    """
    with replacing(path, errors="backslashreplace") as file:
        file.writelines([parts] if isinstance(parts, str) else parts)


def save_picture(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure of matplotlib, in the format that the file's name says; as :func:`replacing`.

    Raises:
        OSError: it can't be written.
    """
    with replacing(path, "wb") as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=130)


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file of that name in its folder, which may be made.

    Args:
        path: of the file.
        flags: of :func:`os.open`, such as ``os.O_RDWR | os.O_CREAT``.

    Raises:
        OSError: there is a link, a FIFO or something else of that name; names it.
    """
    if os.path.islink(path) or (path.exists() and not path.is_file()):
        raise OSError(f"{path}: expected a regular file or none, got a link or something else")
    # The flags once more, for what may have come in between: a FIFO is not waited for.
    return os.open(path, flags | _NO_LINKS | getattr(os, "O_NONBLOCK", 0), 0o666)


def sweep(folder: Path) -> None:
    """Delete the partial files in a folder that runs left which were killed.

    Only for who knows that no other process writes there.
    """
    for path in folder.iterdir():
        if _PARTIAL.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
