"""Tells whoever runs `pip install` which native parts could not be built.

pip and uv keep what a build prints, and show it only if the build fails or with -v. A part that
cannot be built is no failure, so nobody would see why: the message has to go past the front end, to
where the front end itself writes.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping

_FRONT_END = re.compile(r"(-m)?(pip|uv)[\d.]*|__pip-runner__\.py")
_PIDFD_GETFD = 438  # the system call's number, on every architecture of Linux


def notice(missing: Mapping[str, str]) -> str:
    """The message about parts that could not be built.

    Args:
        missing: name of the part -> why, in one line.
    """
    lines = ["", f"WARNING: llama_fast was built without: {', '.join(missing)}."]
    for reason in dict.fromkeys(missing.values()):
        names = ", ".join(name for name in missing if missing[name] == reason)
        lines.append(f"  {names}: {reason}")
    if "ops library" in missing:
        lines += ["  On CPUs, slow PyTorch code is used instead."]
    lines += [
        "  `llama-fast info` repeats this. To get an error with all of the compiler's output,"
    ]
    lines += ["  set LLAMA_FAST_BUILD=1 and install again with --force-reinstall --no-deps."]
    return "\n".join(lines) + "\n"


def tell(text: str) -> bool:
    """Writes to the terminal or log of the pip or uv that runs this build; whether it could.

    Nothing is written if no such front end holds back what the build prints.
    """
    parent = os.getppid()
    if sys.platform != "linux" or not _holds_back_output(parent):
        return False
    for descriptor in _destinations(parent):
        try:
            with open(descriptor, "w", encoding="utf-8", errors="replace") as stream:
                stream.write(text)
            return True
        except OSError:
            continue
    return False


def _holds_back_output(parent: int) -> bool:
    """Whether `parent` is pip or uv and reads what this process prints."""
    try:
        with open(f"/proc/{parent}/cmdline", "rb") as file:
            command = os.fsdecode(file.read()).split("\0")[:3]
        ours, theirs = os.fstat(2), os.stat(f"/proc/{parent}/fd/2")
    except OSError:
        return False
    is_front_end = any(_FRONT_END.fullmatch(os.path.basename(word)) for word in command)
    return is_front_end and stat.S_ISFIFO(ours.st_mode) and not os.path.samestat(ours, theirs)


def _destinations(parent: int) -> Iterator[int]:
    """Descriptors to write to, open, the best first."""
    path = f"/proc/{parent}/fd/2"
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            # A second opening has its own position: the front end would overwrite the message.
            yield _shared_descriptor(parent, 2)
        else:
            yield os.open(path, os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        pass
    try:
        yield os.open("/dev/tty", os.O_WRONLY | os.O_NOCTTY)
    except OSError:
        return


def _shared_descriptor(process: int, number: int) -> int:
    """A descriptor of another process, with its position in the file.

    Raises:
        OSError: the system does not allow it.
    """
    handle = os.pidfd_open(process)
    try:
        descriptor: int = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, handle, number, 0)
    finally:
        os.close(handle)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return descriptor
