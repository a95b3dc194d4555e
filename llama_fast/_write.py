"""Writes files atomically, without following links.

An untrusted folder may contain links under the names that are about to be written. A file is
therefore written under an unpredictable new name and then renamed: a rename replaces a link instead
of following it.
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
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)  # Windows has neither


def partial_name(path: Path) -> Path:
    """A temporary name beside `path`, different in every process."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Yield a new file that replaces `path` when the block ends without an error.

    If the process is killed, an error occurs or the disk is full, the old file (or none) remains.
    The content is synced to disk before the rename.

    Args:
        path: path of the file, in an existing folder.
        mode: "w" (UTF-8 unless `options` say otherwise) or "wb".
        options: options of :func:`open`.

    Raises:
        OSError: the file cannot be written.
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
    """Write a text file atomically; see :func:`replacing`.

    Lone surrogates, which models may generate, are written as backslash escapes.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path, errors="backslashreplace") as file:
        file.writelines([parts] if isinstance(parts, str) else parts)


def save_picture(figure: Any, path: str | os.PathLike[str], source: str = "") -> None:
    """Write a matplotlib figure atomically, in the format of the file's suffix.

    Args:
        figure: the figure.
        path: path of the file.
        source: what the figure shows, as text; a PNG keeps it in its chunk "Description", so that
            a test can tell when the picture is stale.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path, "wb") as file:
        kind = Path(path).suffix[1:]
        kept = {"Description": source} if source and kind == "png" else None
        figure.savefig(file, format=kind, dpi=130, metadata=kept)


def open_own(path: Path, flags: int) -> int:
    """Open a regular file without following links; return its descriptor.

    Args:
        path: path of the file.
        flags: flags of :func:`os.open`, such as ``os.O_RDWR | os.O_CREAT``.

    Raises:
        OSError: `path` is a link, a FIFO or another special file.
    """
    if os.path.islink(path) or (path.exists() and not path.is_file()):
        raise OSError(f"{path}: expected a regular file or none, got a link or something else")
    # The flags guard against a replacement since the check; O_NONBLOCK does not wait for a FIFO.
    return os.open(path, flags | _NO_LINKS | getattr(os, "O_NONBLOCK", 0), 0o666)


def sweep(folder: Path) -> None:
    """Delete the partial files that killed processes left in a folder.

    No other process may be writing there.
    """
    for path in folder.iterdir():
        if _PARTIAL.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
