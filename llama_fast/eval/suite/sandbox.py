"""Runs programs written by a model, and their tests, in a sandbox.

Each program gets a fresh Python process with an empty environment and an empty folder, in its own
user, mount, process, network and message-queue namespaces, on a root file system that contains
Python's library, its packages and the system's libraries read-only. It runs under Landlock, without
capabilities, with limits on memory, processor time and files, and behind a system-call filter that
allows what Python needs but no process, thread, program, connection or signal to others. If a
kernel or container forbids one of these guards, the others remain. The program runs only if files,
network and processes each have at least one guard. docs/evaluation.md describes what remains
possible.

The tests run in a second process behind the same guards. Only that process decides the outcome; the
program's values reach it as data (:mod:`jail.values`, :mod:`jail.peer`).
"""

from __future__ import annotations

import contextlib
import json
import os
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

from llama_fast.eval.suite import jail

__all__ = ["Limits", "Outcome", "SandboxError", "measures", "run"]

# Limit of the process's own start-up, for busy machines; the program's time starts after it.
_STARTUP_SECONDS = 30.0
_MESSAGE_BYTES = 1 << 16


class SandboxError(OSError):
    """This machine cannot run programs safely; the message says what is not guarded."""


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    Attributes:
        seconds: wall time of program and tests together, from when both processes are confined.
            It is generous, so that a busy machine does not decide whether a program is right.
        cpu_seconds: processor time of each of the two processes, rounded up to whole seconds.
        memory_mb: MiB of address space of each process. Not included are files in memory
            (``disk_mb``) and the kernel's buffers of 64 open files.
        file_mb: MiB of one file.
        disk_mb: MiB of all files. Without its own root file system a program cannot write any.
    """

    seconds: float = 30.0
    cpu_seconds: float = 5.0
    memory_mb: int = 1024
    file_mb: int = 8
    disk_mb: int = 32


@dataclass(frozen=True)
class Outcome:
    """The outcome of a program.

    Attributes:
        status: "passed" (program and tests ran to the end), "failed" (one of them raised, exited or
            was killed) or "timed out".
        error: the exception or the way it ended; empty if it passed.
        seconds: wall time of program and tests, without the sandbox's start-up.
    """

    status: str
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether program and tests ran to the end."""
        return self.status == "passed"


def run(program: str, limits: Limits | None = None, tests: str = "") -> Outcome:
    """Run a Python program, then its tests, and return whether both ran to the end.

    The tests run in another process than the program and use its functions by name. Arguments and
    results are passed as data (see :mod:`jail.values`); other objects are passed as references that
    support calls, iteration and attribute access and are equal only to themselves. Output is
    discarded.

    Args:
        program: source of the program.
        limits: limits of each of the two processes; :class:`Limits` by default.
        tests: source that raises if the program is wrong. Without tests, a program passes if it
            reports that it ran to the end.

    Raises:
        SandboxError: this machine lacks the guards to run it safely. The program did not run.
    """
    return _run(program, limits or Limits(), tests=tests)[0]


@cache
def measures() -> dict[str, list[str]]:
    """The guards of "files", "network" and "processes" on this machine, and those that "failed".

    Raises:
        SandboxError: one of the three has no guard, or the system is not Linux.
    """
    return _run("pass", Limits())[1]


def _run(
    program: str, limits: Limits, without: tuple[str, ...] = (), tests: str = ""
) -> tuple[Outcome, dict[str, list[str]]]:
    """The outcome and the guards; the tests of this module leave out layers by ``without``."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"programs run on Linux only, this is {sys.platform}")
    folder = tempfile.mkdtemp(prefix="llama-fast-run-")
    receive, send = os.pipe()
    process = None
    try:
        order = {
            "limits": asdict(limits),
            "channel": send,
            "parent": os.getpid(),
            "readable": _readable(),
            "packages": _packages(),
            "without": without,
        }
        process = subprocess.Popen(
            jail.command("main"),
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
            for message in (order, {"program": program, "tests": tests}):
                data = json.dumps(message).encode()
                process.stdin.write(len(data).to_bytes(8, "little") + data)
            process.stdin.close()
        return _follow(receive, limits)
    finally:
        if process is not None:
            _kill(process)
        for handle in (receive, send):
            if handle >= 0:
                os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _follow(receive: int, limits: Limits) -> tuple[Outcome, dict[str, list[str]]]:
    """Read the two messages: the guards, and the outcome.

    Both come from a process that runs no code of the program.
    """
    ready = time.monotonic() + _STARTUP_SECONDS
    first, rest = _read(receive, b"", ready, until=b"\n")
    if not first:
        raise SandboxError("the sandbox did not start")
    report = json.loads(first)
    if report["open"]:
        raise SandboxError(
            f"programs cannot be run safely here: nothing guards {' and '.join(report['open'])} "
            f"({'; '.join(report['held']['failed'])})"
        )
    start = time.monotonic()
    second, _ = _read(receive, rest, start + limits.seconds, until=None)
    seconds = time.monotonic() - start
    if second is None:
        outcome = Outcome("timed out", f"longer than {limits.seconds} s", seconds)
    elif second == b"passed":
        outcome = Outcome("passed", "", seconds)
    else:  # empty if the limits killed the process of the tests
        text = second.decode(errors="replace").removeprefix("failed ")
        # The kernel kills a process at its limit, to which its start-up counts. Lack of memory ends
        # it in the same way, but hardly after that time.
        if seconds >= limits.cpu_seconds / 2 and (not text or text.endswith("exit code -9")):
            text = f"longer than {limits.cpu_seconds} s of processor time"
            outcome = Outcome("timed out", text, seconds)
        else:
            outcome = Outcome("failed", text or "ended early", seconds)
    return outcome, report["held"]


def _read(
    handle: int, have: bytes, deadline: float, until: bytes | None
) -> tuple[bytes | None, bytes]:
    """The data up to ``until`` or the end, and the rest; None at the deadline."""
    while (until is None or until not in have) and len(have) < _MESSAGE_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            return None, have
        chunk = os.read(handle, 4096)
        if not chunk:
            break
        have += chunk
    if until is None:
        return have, b""
    line, _, rest = have.partition(until)
    return line, rest


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children, which share a process group that they cannot leave.

    The group exists at least until the process is waited for.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def _readable() -> list[str]:
    """Paths that Python needs: its library and packages, and the system's libraries."""
    paths = sysconfig.get_paths()
    paths_needed = [paths[name] for name in ("stdlib", "platstdlib")] + _packages()
    paths_needed += [f"{folder}/lib{bits}" for folder in ("", "/usr") for bits in ("", "32", "64")]
    paths_needed += [f"{sys.base_prefix}/lib", "/usr/local/lib", "/usr/share/zoneinfo"]
    paths_needed += ["/etc/ld.so.cache", "/etc/localtime"]
    paths_needed += [os.path.realpath(path) for path in paths_needed if os.path.islink(path)]
    # Shortest first; a path below another is already included.
    chosen: list[str] = []
    for path in sorted({os.path.abspath(p) for p in paths_needed if os.path.exists(p)}, key=len):
        if path != "/" and not any(path.startswith(c + "/") for c in chosen):
            chosen.append(path)
    return chosen


@cache
def _packages() -> list[str]:
    """The folders of installed packages that a program may import."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))
