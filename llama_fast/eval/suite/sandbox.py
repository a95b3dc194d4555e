"""Runs programs that a model wrote, away from everything, and their tests beside them.

Each program gets a fresh Python process with an empty environment and an empty folder, in its own
user, mount, process, network and message-queue namespaces, on a root file system that holds
Python's library, its packages and the system's libraries read-only; under Landlock; without
capabilities; with limits on memory, processor time and files; and behind a system-call filter that
lets through what Python needs: no process, thread, program or connection, no signal to others nor a
hold on them. Where a kernel or container forbids one of these, the others serve: the program runs
only if files, network and processes are each guarded by at least one. docs/evaluation.md says what
is left.

The tests run in a second process behind the same guards, which alone can tell the outcome; the
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

# How long the process may take to get ready, on a busy machine; the program's time starts then.
_STARTUP_SECONDS = 30.0
_MESSAGE_BYTES = 1 << 16


class SandboxError(OSError):
    """Programs cannot be run safely on this machine; the message says what is not guarded."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time from when both processes are shut in, for program and tests together;
            each of the two gets two more of processor time, which ends it if all else fails.
        memory_mb: MiB of address space, of each process. Outside of it are the files in memory
            (``disk_mb``) and what the kernel holds for 64 open files, such as pipes.
        file_mb: MiB in one file.
        disk_mb: MiB in all files together. Without a root of its own a program can write none.
    """

    seconds: float = 3.0
    memory_mb: int = 1024
    file_mb: int = 8
    disk_mb: int = 32


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        status: "passed" (program and tests ran to their ends), "failed" (one of them raised, exited
            or was killed) or "timed out".
        error: the exception, or how it died; empty if it passed.
        seconds: wall time that program and tests took, without the sandbox's own.
    """

    status: str
    error: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether program and tests ran to their ends."""
        return self.status == "passed"


def run(program: str, limits: Limits | None = None, tests: str = "") -> Outcome:
    """Runs a Python program and then its tests, and says whether these ran to their end.

    The tests run in another process than the program. They use its functions by their names; what
    they pass and get is data (see :mod:`jail.values`), and anything else a reference on which they
    can call, iterate and look up attributes, and which equals itself alone. What is printed is
    thrown away.

    Args:
        program: its source.
        limits: what each of the two processes may use; :class:`Limits` by default.
        tests: source that raises if the program is wrong; without, a program passes that says of
            itself that it ran to its end.

    Raises:
        SandboxError: this machine offers too little to run it safely. It did not run.
    """
    return _run(program, limits or Limits(), tests=tests)[0]


@cache
def measures() -> dict[str, list[str]]:
    """What guards "files", "network" and "processes" here, and what "failed" to.

    Raises:
        SandboxError: one of the three is unguarded, or the machine is no Linux.
    """
    return _run("pass", Limits())[1]


def _run(
    program: str, limits: Limits, without: tuple[str, ...] = (), tests: str = ""
) -> tuple[Outcome, dict[str, list[str]]]:
    """The outcome, and what guarded the program; ``without`` leaves out layers, for the tests."""
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
    """Reads the two messages: what guards the program, and how it ended.

    Both are of a process that runs nothing of the program's.
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
    else:  # nothing at all if the tests' process was killed, by its limits
        text = second.decode(errors="replace").removeprefix("failed ")
        outcome = Outcome("failed", text or "ended early", seconds)
    return outcome, report["held"]


def _read(
    handle: int, have: bytes, deadline: float, until: bytes | None
) -> tuple[bytes | None, bytes]:
    """All up to ``until`` or the end, and what came after it; None if time ran out."""
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
    """Ends the process and all that it started: they share a group and cannot leave it.

    The group is there at least until the process is waited for.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@cache
def _readable() -> list[str]:
    """Folders and files that Python needs: its library and packages, the system's libraries."""
    paths = sysconfig.get_paths()
    paths_needed = [paths[name] for name in ("stdlib", "platstdlib")] + _packages()
    paths_needed += [f"{folder}/lib{bits}" for folder in ("", "/usr") for bits in ("", "32", "64")]
    paths_needed += [f"{sys.base_prefix}/lib", "/usr/local/lib", "/usr/share/zoneinfo"]
    paths_needed += ["/etc/ld.so.cache", "/etc/localtime"]
    paths_needed += [os.path.realpath(path) for path in paths_needed if os.path.islink(path)]
    # Longest last, and none below another: that one is there already.
    chosen: list[str] = []
    for path in sorted({os.path.abspath(p) for p in paths_needed if os.path.exists(p)}, key=len):
        if path != "/" and not any(path.startswith(c + "/") for c in chosen):
            chosen.append(path)
    return chosen


@cache
def _packages() -> list[str]:
    """The folders of installed packages, which a program may import."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))
