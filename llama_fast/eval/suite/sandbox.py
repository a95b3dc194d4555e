"""Runs programs that a model wrote, away from everything.

Each program gets a fresh Python process with an empty environment and an empty folder, in its own
user, mount, process, network and message-queue namespaces, on a root file system that holds Python
and the system's libraries read-only; under Landlock; without capabilities; with limits on memory,
processor time, files and threads; and behind a system-call filter that allows no process, program
or socket, and neither signals to others nor a hold on them. Where a kernel or container forbids one
of these, the others serve: the program runs only if files, network and processes are each guarded
by at least one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Limits", "Outcome", "SandboxError", "measures", "run"]

# How long the process may take to get ready, on a busy machine; the program's time starts then.
_STARTUP_SECONDS = 30.0
_MESSAGE_BYTES = 1 << 16


class SandboxError(OSError):
    """Programs cannot be run safely on this machine; the message says what is not guarded."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time (and two more of processor time, over all threads).
        memory_mb: MiB of address space.
        file_mb: MiB in one file.
        disk_mb: MiB in all files together.
    """

    seconds: float = 3.0
    memory_mb: int = 1024
    file_mb: int = 8
    disk_mb: int = 32


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        status: "passed" (it ran to its end), "failed" (it raised, exited or was killed) or
            "timed out".
        error: the exception, or how it died; empty if it passed.
        seconds: wall time that the program took, without the sandbox's own.
    """

    status: str
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it ran to its end."""
        return self.status == "passed"


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Runs a Python program and says whether it ran to its end.

    ``exit()`` or ``os._exit(0)`` in the middle is no end. What it prints is thrown away.

    Args:
        program: its source.
        limits: what it may use; :class:`Limits` by default.

    Raises:
        SandboxError: this machine offers too little to run it safely. It did not run.
    """
    return _run(program, limits or Limits())[0]


@cache
def measures() -> dict[str, list[str]]:
    """What guards "files", "network" and "processes" here, and what "failed" to.

    Raises:
        SandboxError: one of the three is unguarded, or the machine is no Linux.
    """
    return _run("pass", Limits())[1]


def _run(
    program: str, limits: Limits, without: tuple[str, ...] = ()
) -> tuple[Outcome, dict[str, list[str]]]:
    """The outcome, and what guarded the program; ``without`` leaves out layers, for the tests."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"programs run on Linux only, this is {sys.platform}")
    nonce = secrets.token_hex(16)
    folder = tempfile.mkdtemp(prefix="llama-fast-run-")
    receive, send = os.pipe()
    process = None
    try:
        order = {
            "program": program,
            "limits": asdict(limits),
            "channel": send,
            "parent": os.getpid(),
            "nonce": nonce,
            "readable": _readable(),
            "packages": _packages(),
            "without": without,
        }
        jail = str(Path(__file__).with_name("_jail.py"))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", jail],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            pass_fds=(send,),
            start_new_session=True,
        )
        os.close(send)
        send = -1
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        return _follow(process, receive, nonce, limits)
    finally:
        if process is not None:
            _kill(process)
        for handle in (receive, send):
            if handle >= 0:
                os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _follow(
    process: subprocess.Popen[bytes], receive: int, nonce: str, limits: Limits
) -> tuple[Outcome, dict[str, list[str]]]:
    """Reads the process's two messages: what guards it, and how the program ended."""
    first, rest = _line(receive, b"", time.monotonic() + _STARTUP_SECONDS)
    report = _parse(first)
    if "held" not in report:
        raise SandboxError(f"the sandbox did not start (exit code {process.poll()})")
    if report["open"]:
        raise SandboxError(
            f"programs cannot be run safely here: nothing guards {' and '.join(report['open'])} "
            f"({'; '.join(report['held']['failed'])})"
        )
    start = time.monotonic()
    second, _ = _line(receive, rest, start + limits.seconds)
    seconds = time.monotonic() - start
    if second is None:
        return Outcome("timed out", f"longer than {limits.seconds} s", seconds), report["held"]
    end = _parse(second)
    if end.get("passed") == nonce:
        return Outcome("passed", "", seconds), report["held"]
    error = str(end.get("error") or "")
    if not error:
        # The channel is closed, so the process is about to end.
        try:
            error = f"ended early, exit code {process.wait(timeout=5)}"
        except subprocess.TimeoutExpired:
            error = "ended early"
    return Outcome("failed", error, seconds), report["held"]


def _line(handle: int, have: bytes, deadline: float) -> tuple[bytes | None, bytes]:
    """The next line and what came after it; None if time ran out, empty at the end."""
    while b"\n" not in have and len(have) < _MESSAGE_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            return None, have
        chunk = os.read(handle, 4096)
        if not chunk:
            break
        have += chunk
    line, _, rest = have.partition(b"\n")
    return line, rest


def _parse(line: bytes | None) -> dict[str, Any]:
    try:
        message = json.loads(line or b"{}")
    except ValueError:  # the program wrote to the channel itself
        return {}
    return message if isinstance(message, dict) else {}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it started: they share a group and cannot leave it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@cache
def _readable() -> list[str]:
    """Folders and files that Python needs: itself, its packages, the system's libraries."""
    wanted = ["/usr", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime"]
    wanted += [sys.base_prefix, sys.prefix, os.path.dirname(os.path.realpath(sys.executable))]
    # Longest last, and none below another: that one is there already.
    chosen: list[str] = []
    for path in sorted({os.path.abspath(p) for p in wanted if os.path.exists(p)}, key=len):
        if path != "/" and not any(path.startswith(c + "/") for c in chosen):
            chosen.append(path)
    return chosen


@cache
def _packages() -> list[str]:
    """The folders of installed packages, which a program may import."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))
