"""Files in folders that others made: whatever names them, they are regular files in that folder."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_HUB_CACHE = re.compile(r"(models|datasets|spaces)--.+")


def inside(
    folder: str | os.PathLike[str],
    name: Any,
    where: str | os.PathLike[str],
    error: type[Exception] = ValueError,
    *,
    links: bool = False,
) -> Path:
    """The path of a file in a folder, once it is sure that to read it reads nothing else.

    A name that stands in a file may be anything: ``../../.ssh/id_rsa``, ``/dev/zero``, a link to
    either, or a FIFO, which is waited for without end. A snapshot in the hub's cache consists of
    links into the folder `blobs` of the same repository; these are read.

    Args:
        folder: that the file has to lie in, once links are resolved.
        name: relative path, with slashes; any object, as JSON may have it.
        where: what names the file, for the message.
        error: class of the exception.
        links: whether a link may lead elsewhere. For names of our own, such as ``config.json``, in
            a folder that a person named; what it leads to still has to be a regular file.

    Returns:
        ``folder / name``. One that is not there is returned as well: to open it says so.

    Raises:
        ValueError, or `error`: names the file and what is wrong.
    """
    folder = Path(folder)

    def refused(reason: str) -> Exception:
        return error(f"{where}: expected a file inside {folder}, got {name!r:.200}: {reason}")

    if not isinstance(name, str) or not name.strip("./\\") or "\0" in name:
        raise refused("no name of a file")
    windows = PureWindowsPath(name)  # splits at both kinds of slashes
    if PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts:
        raise refused("it leads out of the folder")
    path = folder / name
    try:
        found = path.resolve(strict=True)
        kind = found.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError) as problem:  # links in a circle, no right to look
        raise refused(str(problem)) from None
    if not stat.S_ISREG(kind):
        raise refused("no regular file")
    if not links and not _lies_in(found, folder.resolve()):
        raise refused(f"it is a link to {found}, which is not in the folder")
    return path


def _lies_in(found: Path, folder: Path) -> bool:
    """Whether a resolved path is in a folder or, of a snapshot, among its repository's blobs."""
    if found.is_relative_to(folder):
        return True
    for snapshots in (folder, *folder.parents):
        if snapshots.name == "snapshots" and _HUB_CACHE.fullmatch(snapshots.parent.name):
            return found.parent == snapshots.parent / "blobs"
    return False
