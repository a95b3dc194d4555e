"""Checks paths from untrusted files: they may only lead to regular files in the same folder."""

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
    """Return the path of a file in a folder, after checking that it does not lead elsewhere.

    A name in an untrusted file may be ``../../.ssh/id_rsa``, ``/dev/zero``, a link to either, or a
    FIFO, which blocks the reader forever. A snapshot in the hub's cache consists of links into the
    folder `blobs` of the same repository; these are allowed.

    Args:
        folder: the folder in which the file must be after links are resolved.
        name: a relative path with slashes; any other JSON value is an error.
        where: where the name comes from, for the message.
        error: class of the exception to raise.
        links: whether a link may lead out of the folder to a regular file. For fixed names, such as
            ``config.json``, in a folder that the user named.

    Returns:
        ``folder / name``, even if the file does not exist: opening it will fail.

    Raises:
        ValueError, or `error`: the name leads out of the folder; the message says how.
    """
    folder = Path(folder)

    def refused(reason: str) -> Exception:
        return error(f"{where}: expected a file inside {folder}, got {name!r:.200}: {reason}")

    if not isinstance(name, str) or not name.strip("./\\") or "\0" in name:
        raise refused("not the name of a file")
    windows = PureWindowsPath(name)  # splits at both kinds of slashes
    if PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts:
        raise refused("it leads out of the folder")
    path = folder / name
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError) as problem:  # a cycle of links, no permission
        raise refused(str(problem)) from None
    if not stat.S_ISREG(mode):
        raise refused("not a regular file")
    if not links and not _is_in(target, folder.resolve()):
        raise refused(f"it is a link to {target}, which is not in the folder")
    return path


def _is_in(target: Path, folder: Path) -> bool:
    """Whether a resolved path is in a folder or, for a snapshot, in its repository's `blobs`."""
    if target.is_relative_to(folder):
        return True
    for snapshots in (folder, *folder.parents):
        if snapshots.name == "snapshots" and _HUB_CACHE.fullmatch(snapshots.parent.name):
            return target.parent == snapshots.parent / "blobs"
    return False
