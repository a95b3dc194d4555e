"""The system-call filter (seccomp): an allow-list of what CPython needs.

A call that is not on the list fails with EPERM. A call newer than those reviewed here fails with
ENOSYS, so that the C library falls back to an older one. ``clone`` is not on the list, because a
filter cannot count threads.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

__all__ = ["filter_system_calls"]

# Name, number on x86_64, number on aarch64. Numbers are those of Linux's asm/unistd_64.h and
# asm-generic/unistd.h. None of these reaches another process, and files are reached by path, where
# the mounts or Landlock decide; docs/evaluation.md says what remains visible of other files.
_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, preadv 295 69,
pwritev 296 70, preadv2 327 286, pwritev2 328 287, access 21 -, pipe 22 -, pipe2 293 59,
select 23 -, pselect6 270 72, ppoll 271 73, sched_yield 24 124, mremap 25 216, msync 26 227,
dup 32 23, dup2 33 -, dup3 292 24, pause 34 -, nanosleep 35 101, getitimer 36 102, setitimer 38 103,
alarm 37 -, getpid 39 172, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, getgroups 115 158, getresuid 118 148, getresgid 120 150, getppid 110 173,
getpgrp 111 -, sendto 44 206, recvfrom 45 207, shutdown 48 210, getsockname 51 204,
getpeername 52 205, getsockopt 55 209, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95,
uname 63 160, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, fallocate 285 47,
getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38,
renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, creat 85 -, link 86 -, linkat 265 37,
unlink 87 -, unlinkat 263 35, symlink 88 -, symlinkat 266 36, readlink 89 -, readlinkat 267 78,
umask 95 166, gettimeofday 96 169, getrlimit 97 163, setrlimit 160 164, getrusage 98 165,
times 100 153, sigaltstack 131 132, rt_sigpending 127 136, rt_sigtimedwait 128 137,
rt_sigsuspend 130 133, time 201 -, getcpu 309 168, futex 202 98, restart_syscall 219 128,
epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
epoll_pwait2 441 441, openat 257 56, newfstatat 262 79, statx 332 291, faccessat 269 48,
faccessat2 439 439, sendfile 40 71, copy_file_range 326 285, getrandom 318 278, close_range 436 436
"""
# Calls that are allowed for some values of an argument only, of which the kernel reads 32 bits.
_CONDITIONAL = """
kill 62 129, tgkill 234 131, prctl 157 167, prlimit64 302 261, fcntl 72 25, ioctl 16 29,
socketpair 53 199, madvise 28 233, sched_getaffinity 204 123, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115
"""
_NEWEST = 469  # file_setattr, Linux 6.17
# machine -> (column of the numbers above, audit architecture)
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 38, 22
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050000 | 38
_LOAD, _EQUAL, _AT_LEAST, _MASK, _GIVE = 0x20, 0x15, 0x35, 0x54, 0x06


def _conditions(own: int) -> list[tuple[str, list[tuple[int, int, tuple[int, ...]]]]]:
    """Call -> conditions on its arguments: (index, bits to ignore, allowed values)."""
    clocks = (0, 0, tuple(range(12)))  # clocks by name; other numbers are clocks of other processes
    return [
        ("kill", [(0, 0, (own,))]),
        ("tgkill", [(0, 0, (own,))]),
        ("prctl", [(0, 0, (15, 16))]),  # the name of the thread
        # 0 is the process itself; setrlimit and getrlimit come as this call.
        ("prlimit64", [(0, 0, (0,))]),
        ("sched_getaffinity", [(0, 0, (0,))]),
        # Duplicates and flags: no locks, leases, signals, larger pipes.
        ("fcntl", [(1, 0, (0, 1, 2, 3, 4, 1030))]),
        # isatty, FIONREAD, FIONBIO, and the close-on-exec flag.
        ("ioctl", [(1, 0, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))]),
        # Pairs of streams, for asyncio. Datagram sockets could send to any address.
        ("socketpair", [(0, 0, (1,)), (1, 0o2004000, (1,))]),  # besides CLOEXEC and NONBLOCK
        # Advice that allocators give.
        ("madvise", [(2, 0, (4, 8, 14, 15))]),
        ("clock_gettime", [clocks]),
        ("clock_getres", [clocks]),
        ("clock_nanosleep", [clocks]),
    ]


def _numbers(table: str, column: int) -> dict[str, int]:
    """System call -> number, without calls that the machine lacks."""
    entries = [entry.split() for entry in table.replace("\n", " ").split(",")]
    return {entry[0]: int(entry[column]) for entry in entries if entry[column] != "-"}


def _program(machine: str, own: int) -> list[bytes]:
    """The filter's instructions, for a process of id ``own``."""
    column, architecture = _MACHINES[machine]
    program: list[bytes] = []

    def step(code: int, value: int, when_true: int = 0, when_false: int = 0) -> None:
        program.append(struct.pack("=HBBI", code, when_true, when_false, value))

    step(_LOAD, 4)  # the architecture
    step(_EQUAL, architecture, 1, 0)
    step(_GIVE, _KILL)  # the 32-bit table of calls would bypass the filter
    step(_LOAD, 0)  # the number of the call
    step(_AT_LEAST, 0x40000000, 0, 1)
    step(_GIVE, _EPERM)  # x32
    step(_AT_LEAST, _NEWEST + 1, 0, 1)
    step(_GIVE, _ENOSYS)
    for number in _numbers(_ALLOWED, column).values():
        step(_EQUAL, number, 0, 1)
        step(_GIVE, _ALLOW)
    conditional = _numbers(_CONDITIONAL, column)
    for name, conditions in _conditions(own):
        length = sum(3 + len(values) for _, _, values in conditions) + 1
        step(_EQUAL, conditional[name], 0, length)
        for argument, without, values in conditions:
            step(_LOAD, 16 + 8 * argument)
            step(_MASK, 0xFFFFFFFF & ~without)
            for index, value in enumerate(values):
                step(_EQUAL, value, len(values) - index, 0)
            step(_GIVE, _EPERM)
        step(_GIVE, _ALLOW)
    step(_GIVE, _EPERM)
    return program


def filter_system_calls() -> None:
    """Install the filter in the calling process, irrevocably.

    Raises:
        OSError: the kernel has no filters, or the machine is neither x86_64 nor aarch64.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"no table of system calls for {machine}")
    program = _program(machine, os.getpid())
    rules = b"".join(program)
    buffer = ctypes.create_string_buffer(rules, len(rules))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, 2, header, 0, 0)
    for each in arguments:
        if libc.prctl(*each) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
