"""The system-call filter lets through what Python needs and nothing else, on both machines."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from llama_fast.eval.suite.jail.calls import _ALLOWED, _CONDITIONAL, _numbers, _program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050000 | errno.ENOSYS
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
MACHINES = ("x86_64", "aarch64")
OWN = 4711


def verdict(machine: str, number: int, *arguments: int, architecture: str = "") -> int:
    """What the filter for a machine says to a call, by the rules of classic BPF."""
    data = struct.pack("=iIQ", number, ARCHITECTURES[architecture or machine], 0)
    data += struct.pack("=6Q", *(a & (1 << 64) - 1 for a in (*arguments, 0, 0, 0, 0, 0, 0)[:6]))
    program = [struct.unpack("=HBBI", step) for step in _program(machine, OWN)]
    at, value = 0, 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        if code == 0x20:  # load
            value = struct.unpack_from("=I", data, k)[0]
        elif code == 0x54:  # and
            value &= k
        elif code in (0x15, 0x35):  # equal, at least
            at += if_true if (value == k if code == 0x15 else value >= k) else if_false
        else:
            assert code == 0x06  # return
            return k


def number(machine: str, name: str) -> int:
    return _numbers(_ALLOWED + "," + _CONDITIONAL, MACHINES.index(machine) + 1)[name]


@pytest.mark.parametrize("machine", MACHINES)
def test_all_but_the_listed_calls_are_refused(machine: str) -> None:
    column = MACHINES.index(machine) + 1
    allowed, judged = _numbers(_ALLOWED, column), _numbers(_CONDITIONAL, column)
    assert len(set(allowed.values()) | set(judged.values())) == len(allowed) + len(judged)
    for call in range(-1, 600):
        if call not in judged.values():
            expected = ALLOW if call in allowed.values() else ENOSYS if call > 469 else EPERM
            assert verdict(machine, call) == (EPERM if call < 0 else expected), call
        assert verdict(machine, call | 0x40000000) == EPERM  # x32
        for other in ("i386", "arm", "aarch64" if machine == "x86_64" else "x86_64"):
            assert verdict(machine, call, architecture=other) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("kill", [(OWN, 9), (OWN, 0)], [(1, 9), (-1, 9), (0, 9), (OWN + 1, 9)]),
        ("tgkill", [(OWN, 5, 6)], [(1, 1, 9), (-1, 5, 9)]),
        ("prctl", [(15,), (16,)], [(1,), (4,), (22,), (38,), (0x59616D61,)]),
        ("prlimit64", [(0, 7)], [(1, 7), (OWN + 1, 7), (-1, 7)]),
        ("sched_getaffinity", [(0,)], [(1,)]),
        (
            "fcntl",
            [(5, 1), (5, 3), (5, 4), (5, 1030)],
            [(5, 6), (5, 8), (5, 10), (5, 15), (5, 1031)],
        ),
        (
            "ioctl",
            [(5, 0x5401), (5, 0x5421)],
            [(5, 0x5412), (5, 0x8901), (5, 0x8902), (5, 0x40086602)],
        ),
        (
            "socketpair",
            [(1, 1, 0), (1, 1 | 0o2000000 | 0o4000, 0)],
            [(1, 2, 0), (1, 3, 0), (1, 5, 0), (2, 1, 0), (16, 1, 0), (30, 1, 0), (40, 1, 0)],
        ),
        ("madvise", [(0, 0, 4)], [(0, 0, 12), (0, 0, 21), (0, 0, 100)]),
        ("clock_gettime", [(0,), (3,), (11,)], [(-6,), (~5 << 3 | 2,)]),
    ],
)
def test_some_calls_are_judged_by_their_arguments(
    machine: str, name: str, allowed: list[tuple[int, ...]], refused: list[tuple[int, ...]]
) -> None:
    for arguments in allowed:
        assert verdict(machine, number(machine, name), *arguments) == ALLOW, arguments
        # The kernel reads 32 bits of these; the others are as they happen to be.
        high = [a | 0xABCD << 32 for a in arguments]
        assert verdict(machine, number(machine, name), *high) == ALLOW, arguments
    for arguments in refused:
        assert verdict(machine, number(machine, name), *arguments) == EPERM, arguments


# Calls that a list of what is refused would have to name: numbers on x86_64 and aarch64, arguments.
SEEN = {
    "vmsplice": (278, 75, "pipe[1], iov, 1, 0"),
    "splice": (275, 76, "zero, None, pipe[1], None, 99, 0"),
    "getxattr": (191, 8, "b'/', b'user.x', None, 0"),
    "listxattr": (194, 11, "b'/', None, 0"),
    "inotify_init1": (294, 26, "0"),
    "fanotify_init": (300, 262, "0, 0"),
    "statfs": (137, 43, "b'/', buffer"),
    "sysinfo": (99, 179, "buffer"),
    "mincore": (27, 232, "buffer, 0, buffer"),
    "flock": (73, 32, "zero, 1"),
    "getsid": (124, 156, "1"),
    "statmount": (457, 457, "buffer, buffer, 4096, 0"),
    "listmount": (458, 458, "buffer, buffer, 8, 0"),
    "open_tree_attr": (467, 467, "-100, b'/', 1, buffer, 32"),
    "file_getattr": (468, 468, "-100, b'/', buffer, 24, 0"),
    "file_setattr": (469, 469, "-100, b'/', buffer, 24, 0"),
    "a new call": (470, 470, "0"),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_call_that_shows_or_takes_more_is_refused(attempt, name: str) -> None:
    x86_64, aarch64, arguments = SEEN[name]
    call = x86_64 if os.uname().machine == "x86_64" else aarch64
    refusal = "ENOSYS" if call > 469 else "EPERM"
    program = (
        "import ctypes, errno, os\n"
        "libc, pipe, zero = ctypes.CDLL(None, use_errno=True), os.pipe(), os.open('/dev/zero', 0)\n"
        "buffer = ctypes.create_string_buffer(4096)\n"
        "iov = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 4096)\n"
        f"assert libc.syscall(ctypes.c_long({call}), {arguments}) == -1\n"
        f"assert ctypes.get_errno() == errno.{refusal}, ctypes.get_errno()"
    )
    outcome = attempt(program)
    assert outcome.passed, outcome.error


def test_the_table_of_32_bit_calls_is_shut(attempt) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("needs a processor with x86-64")
    program = (
        "import ctypes, mmap\n"
        "code = mmap.mmap(-1, 4096, prot=7)\n"
        "code.write(bytes.fromhex('53b814000000cd805bc3'))  # getpid by int 0x80\n"
        "address = ctypes.addressof(ctypes.c_char.from_buffer(code))\n"
        "raise SystemExit(ctypes.CFUNCTYPE(ctypes.c_int)(address)())"
    )
    assert attempt(program).error.startswith("ended early")
