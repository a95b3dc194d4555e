"""A lock on a folder: one run at a time."""

from __future__ import annotations

import errno
import os
from io import BufferedRandom
from pathlib import Path

from llama_fast._write import open_own, sweep

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_held: dict[tuple[int, Path], BufferedRandom] = {}


def hold(folder: Path) -> None:
    """Lock `folder`, which is created if needed, until this process ends.

    The system releases the lock however the process ends, `kill -9` included. A process may lock
    the same folder again. On a file system without locks this does nothing.

    Raises:
        OSError: another process has the lock, or the lock file is not a regular file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = (os.getpid(), folder.resolve())
    if fcntl is None or key in _held:
        return
    file = os.fdopen(open_own(folder / ".lock", os.O_RDWR | os.O_CREAT), "r+b")
    try:
        # Not flock: forks inherit it, so data-loading workers would keep the folder locked for some
        # seconds after their run was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise OSError(
                f"out: {folder} is in use by another run; choose another folder or wait for "
                "that run to end"
            ) from None
    else:
        sweep(folder)
    _held[key] = file  # closing it would release the lock
