"""Programs that try to reach other processes: by signals, limits, messages or memory.

As in `test_sandbox.py`, each attempt is made with all layers and with each of two left out; whom it
aims at is real.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eval.suite.attempts import unguarded

pytestmark = pytest.mark.usefixtures("programs_can_run")


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[str]]:
    """Another process, which sleeps."""
    command = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_no_signal_to_others(attempt, victim) -> None:
    kills = "\n".join(
        f"try: os.{call}({pid}, {signal.SIGKILL})\nexcept OSError: pass"
        for call in ("kill", "killpg")
        for pid in (victim.pid, os.getpid(), "os.getppid()", -1)
    )
    attempt(f"import os\n{kills}")
    time.sleep(0.1)
    assert victim.poll() is None


def test_no_signal_by_a_file(attempt, victim) -> None:
    """A file can be told whom to signal, and how, when there is something to read."""
    start = (
        "import fcntl, os, socket, struct, time\n"
        f"pid, kill = {victim.pid}, {int(signal.SIGKILL)}\n"
        "a, b = socket.socketpair()\n"
    )
    end = "fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)\nb.send(b'x')\ntime.sleep(0.1)\n"
    tell = {
        "F_SETOWN": "fcntl.fcntl(a, fcntl.F_SETOWN, pid)",
        "F_SETOWN_EX": "fcntl.fcntl(a, 15, struct.pack('ii', 1, pid))",
        "F_SETSIG": "fcntl.fcntl(a, 10, kill)",
        "FIOSETOWN": "fcntl.ioctl(a, 0x8901, struct.pack('i', pid))",
        "SIOCSPGRP": "fcntl.ioctl(a, 0x8902, struct.pack('i', pid))",
    }
    for what, program in tell.items():
        assert attempt(f"{start}{program}\n{end}").error.startswith("PermissionError"), what
    assert victim.poll() is None
    unguarded(f"{start}{tell['F_SETSIG']}\n{tell['F_SETOWN']}\n{end}")
    assert victim.wait(5) == -signal.SIGKILL


# Calls without a function in Python: numbers on x86_64 and aarch64, and arguments.
UNNAMED = (
    (251, 30, "1, pid, 3 << 13"),  # ioprio_set: only when the disk is idle
    (314, 274, "pid, (c_uint32 * 12)(48, 3), 0"),  # sched_setattr: SCHED_BATCH
    (256, 238, "pid, 64, (c_long * 1)(1), (c_long * 1)(1)"),  # migrate_pages
    (279, 239, "pid, 0, None, None, None, 0"),  # move_pages
    (440, 440, "0, None, 0, 0, 0"),  # process_madvise
    (448, 448, "0, 0"),  # process_mrelease
)


def test_no_limit_or_priority_of_others(attempt, victim) -> None:
    before = state(victim.pid)
    files = "resource.prlimit(pid, resource.RLIMIT_NOFILE, (7, 7))"
    attempts = [
        "resource.prlimit(pid, resource.RLIMIT_CPU)",
        "resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))",
        files,
        "os.setpriority(os.PRIO_PROCESS, pid, 19)",
        "os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})",
        "os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))",
        "os.sched_setparam(pid, os.sched_param(0))",
        *(
            f"call({x86_64 if os.uname().machine == 'x86_64' else aarch64}, {arguments})"
            for x86_64, aarch64, arguments in UNNAMED
        ),
    ]
    start = (
        "import os, resource\nfrom ctypes import CDLL, c_long, c_uint32, get_errno\n"
        f"pid, libc = {victim.pid}, CDLL(None, use_errno=True)\n"
        "def call(number, *arguments):\n"
        "    if libc.syscall(c_long(number), *arguments) < 0: raise OSError(get_errno(), 'no')\n"
    )
    for what in attempts:
        assert attempt(start + what).error.startswith("PermissionError"), what
    assert state(victim.pid) == before
    assert unguarded(start + files) == "" and state(victim.pid) != before
    # What a program does to itself goes on working.
    own = "import os, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (32, 64))"
    assert attempt(f"{own}\nassert os.sched_getaffinity(0) and os.cpu_count()").passed


def state(pid: int) -> list[object]:
    """Limits and priorities of a process, as others can change them."""
    limits = [resource.prlimit(pid, kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE)]
    scheduled = os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)
    return [*limits, *scheduled, os.sched_getaffinity(pid)]


def test_no_unix_socket(attempt, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r})"
        assert attempt(program).status == "failed"


def test_no_message_to_a_unix_socket(attempt, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        server.settimeout(0.1)
        for kind in ("SOCK_DGRAM", "SOCK_RAW"):
            # One of a pair needs no connection to send to others.
            program = (
                "import socket\n"
                f"socket.socketpair(socket.AF_UNIX, socket.{kind})[0].sendto(b'out', {path!r})"
            )
            assert "PermissionError" in attempt(program).error
            with pytest.raises(TimeoutError):
                server.recv(9)
            assert unguarded(program) == "" and server.recv(9) == b"out"
    # Pairs that reach nobody else are what asyncio works with.
    assert attempt("import asyncio\nasyncio.run(asyncio.sleep(0))").passed


def test_no_memory_of_others(attempt) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    shared = libc.shmget(0, 4096, 0o600)
    assert shared >= 0
    try:
        for call in (f"shmat({shared}, None, 0)", f"shmctl({shared}, 0, None)"):
            program = (
                "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
                f"assert libc.{call} == -1\nassert ctypes.get_errno() == 1, ctypes.get_errno()"
            )
            assert attempt(program).passed, call
    finally:
        assert libc.shmctl(shared, 0, None) == 0  # it is still there, and goes now
