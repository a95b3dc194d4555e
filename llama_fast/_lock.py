"""One run at a time in a folder."""

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
    """Keep other processes from running in `folder`, which is made, until this one ends.

    The system gives the lock back however the process ends, `kill -9` included. A process may hold
    the same folder again. On a file system without locks nothing is kept from anyone.

    Raises:
        OSError: another process holds it, or its file is a link or something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = (os.getpid(), folder.resolve())
    if fcntl is None or key in _held:
        return
    file = os.fdopen(open_own(folder / ".lock", os.O_RDWR | os.O_CREAT), "r+b")
    try:
        # Not flock: a fork inherits that, so workers that read data would keep the folder locked
        # for some seconds after their run was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise OSError(
                f"out: {folder} is in use by another run; expected a folder that is not, or that "
                "run to end first"
            ) from None
    else:
        sweep(folder)
    _held[key] = file  # to close it would give the lock back
