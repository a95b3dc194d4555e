"""Runs one program where it can do no harm; started by :mod:`sandbox` in a process of its own.

Standard library only, as nothing else is imported under ``python -I -S``. The order matters: first
the namespaces (they need rights), then Landlock, the capabilities and the resource limits, last the
system-call filter, which forbids what came before. Every layer is tried; what held is reported
before the program starts, and without a layer for files, network and processes it does not start.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
WORK = "/sandbox"
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 38, 22, 24
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT, SYS_MOUNT_SETATTR = 444, 445, 446, 442

# System calls that reach beyond the process, or change files in ways that Landlock lets pass:
# name, number on x86_64, number on aarch64.
_DENIED = """
socket 41 198, connect 42 203, bind 49 200, ptrace 101 117, process_vm_readv 310 270,
process_vm_writev 311 271, io_uring_setup 425 425, io_uring_enter 426 426,
io_uring_register 427 427, fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, tkill 200 130,
rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_open 434 434, pidfd_send_signal 424 424,
pidfd_getfd 438 438, unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41,
chroot 161 51, open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431,
fsmount 432 432, fspick 433 433, mount_setattr 442 442, bpf 321 280, perf_event_open 298 241,
keyctl 250 219, add_key 248 217, request_key 249 218, userfaultfd 323 282,
name_to_handle_at 303 264, open_by_handle_at 304 265, init_module 175 105, finit_module 313 273,
delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294, reboot 169 142, swapon 167 224,
swapoff 168 225, setsid 112 157, setpgid 109 154, personality 135 92, acct 163 89, quotactl 179 60,
memfd_create 319 279, mq_open 240 180, shmget 29 194, shmat 30 196, shmctl 31 195, msgget 68 186,
msgsnd 69 189, msgrcv 70 188, msgctl 71 187, semget 64 190, semop 65 193, semctl 66 191,
semtimedop 220 192, mq_unlink 241 181, setpriority 141 140, sched_setaffinity 203 122,
sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, ioprio_set 251 30,
migrate_pages 256 238, move_pages 279 239, process_madvise 440 440, process_mrelease 448 448,
iopl 172 -, ioperm 173 -, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -,
fchown 93 55, lchown 94 -, fchownat 260 54, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7,
setxattrat 463 463, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16,
removexattrat 466 466, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88
"""
# Those that are denied or allowed by an argument.
_JUDGED = """
clone 56 220, kill 62 129, tgkill 234 131, prctl 157 167, prlimit64 302 261, fcntl 72 25,
ioctl 16 29, socketpair 53 199
"""
# machine -> (column of the numbers above, audit architecture, clone3)
_MACHINES = {"x86_64": (1, 0xC000003E, 435), "aarch64": (2, 0xC00000B7, 435)}


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(number: int, *args: int | bytes | None) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args))


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    raw = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _check(_libc.mount(raw[0], raw[1], raw[2], ctypes.c_ulong(flags), raw[3]))


def _new_namespaces() -> None:
    """Own users, mounts, processes, network, message queues and host name."""
    uid, gid = os.geteuid(), os.getegid()
    spaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    _check(_libc.unshare(spaces))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _new_root(root: str, readable: list[str], megabytes: int) -> None:
    """A file system of what is readable (read-only) and two empty folders of bounded size."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    size = f"size={megabytes}m,nr_inodes=4096,mode=755"
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, size)
    for path in [*readable, "/dev/null", "/dev/zero", "/dev/urandom"]:
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
        _mount(path, target, None, MS_BIND | MS_REC)
        # Read-only and without set-user-id, also for what is mounted below; device files stay.
        flags = 0x1 | 0x2 | (0 if path.startswith("/dev/") else 0x4)
        attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
        _syscall(
            SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, len(attributes)
        )
    for folder in (WORK, "/tmp", "/.outside"):
        os.makedirs(root + folder, exist_ok=True)
    pivot = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _syscall(pivot, root.encode(), (root + "/.outside").encode())
    os.chdir(WORK)
    _check(_libc.umount2(b"/.outside", MNT_DETACH))
    os.rmdir("/.outside")


def _landlock(readable: list[str], writable: list[str]) -> None:
    """Allows reading below ``readable`` and all below ``writable``, and no TCP; no other file."""
    version = _syscall(SYS_LANDLOCK_CREATE, None, 0, 1)
    if version < 3:
        raise OSError(f"version {version} lets files be truncated")
    files = (1 << 15) - 1
    if version >= 5:
        files |= 1 << 15  # ioctl on devices
    network = 0b11 if version >= 4 else 0
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals of others
    attributes = struct.pack("=QQQ", files, network, scoped)
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = _syscall(SYS_LANDLOCK_CREATE, attributes, len(attributes), 0)
    rights = [(path, 0b1101) for path in readable]  # execute (map libraries), read, list
    rights += [(path, files & ~0b1) for path in writable]
    rights += [("/dev/null", 0b110), ("/dev/zero", 0b100), ("/dev/urandom", 0b100)]
    for path, allowed in rights:
        if not os.path.exists(path):
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            allowed &= 0b111  # the others are rights on folders
        rule = struct.pack("=Qi", allowed, handle)
        _syscall(SYS_LANDLOCK_ADD, rules, 1, rule, 0)
        os.close(handle)
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _syscall(SYS_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _drop_capabilities() -> None:
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header = struct.pack("=Ii", 0x20080522, 0)
    _check(_libc.capset(header, struct.pack("=6I", 0, 0, 0, 0, 0, 0)))


def _limit(limits: dict[str, int]) -> None:
    megabyte = 1 << 20
    seconds = int(limits["seconds"]) + 2
    values = {
        resource.RLIMIT_AS: limits["memory_mb"] * megabyte,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: limits["file_mb"] * megabyte,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in values.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _numbers(table: str, column: int) -> dict[str, int]:
    """System call -> number; those that the machine does not have are left out."""
    entries = [entry.split() for entry in table.replace("\n", " ").split(",")]
    return {entry[0]: int(entry[column]) for entry in entries if entry[column] != "-"}


def _filter_system_calls() -> None:
    """No new processes or programs, no sockets, no reach to others (a seccomp filter)."""
    column, architecture, clone3 = _MACHINES[platform.machine()]
    allow, fail, unknown = 0x7FFF0000, 0x00050001, 0x00050000 | 38  # EPERM, ENOSYS
    program: list[bytes] = []

    def step(code: int, value: int, when_true: int = 0, when_false: int = 0) -> None:
        program.append(struct.pack("=HBBI", code, when_true, when_false, value))

    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    step(load, 4)  # the architecture
    step(equal, architecture, 1, 0)
    step(give, 0)  # kill: another system-call table would go round the filter
    step(load, 0)  # the number of the call
    step(at_least, 0x40000000, 0, 1)  # x32
    step(give, fail)
    for number in _numbers(_DENIED, column).values():
        step(equal, number, 0, 1)
        step(give, fail)
    # Without clone3, whose flags a filter cannot read, glibc starts threads by clone.
    step(equal, clone3, 0, 1)
    step(give, unknown)
    own = os.getpid()
    judged = _numbers(_JUDGED, column)
    for name, argument, code, value, then, otherwise in (
        ("clone", 0, any_bit, CLONE_THREAD, allow, fail),
        ("kill", 0, equal, own, allow, fail),
        ("tgkill", 0, equal, own, allow, fail),
        ("prctl", 0, equal, PR_SET_PDEATHSIG, fail, allow),
        # 0 is the process itself; setrlimit and getrlimit come as this call.
        ("prlimit64", 0, equal, 0, allow, fail),
        # 8 to 15, and none that Python uses: who is signalled about a file, and by which signal.
        ("fcntl", 1, any_bit, 8, fail, allow),
        # The same of a socket (0x8901, 0x8902), and all others of sockets.
        ("ioctl", 1, at_least, 0x8900, fail, allow),
        # A datagram socket sends to any address without connecting; types 2 and 3 are such.
        ("socketpair", 1, any_bit, 2, fail, allow),
    ):
        step(equal, judged[name], 0, 4)
        # The low half, which is all that the kernel reads of these arguments.
        step(load, 16 + 8 * argument)
        step(code, value, 0, 1)
        step(give, then)
        step(give, otherwise)
    step(give, allow)

    rules = b"".join(program)
    buffer = ctypes.create_string_buffer(rules, len(rules))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0))


def _attempt(
    held: dict[str, list[str]],
    name: str,
    kinds: list[str],
    action: Callable[..., None],
    *args: object,
) -> bool:
    """Whether the action worked; if so, ``name`` guards ``kinds``."""
    try:
        action(*args)
    except (OSError, KeyError, AttributeError) as error:
        held["failed"].append(f"{name}: {error}")
        return False
    for kind in kinds:
        held[kind].append(name)
    return True


def _die_with_parent(parent: int) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _tell(channel: int, message: dict[str, object]) -> None:
    os.write(channel, (json.dumps(message) + "\n").encode())


def main() -> None:
    """Reads the order from standard input and carries it out."""
    order = json.loads(sys.stdin.buffer.read())
    channel, program, readable = order["channel"], order["program"], order["readable"]
    _die_with_parent(order["parent"])
    held: dict[str, list[str]] = {"files": [], "network": [], "processes": [], "failed": []}
    writable: list[str] = []
    without = order["without"]
    if "namespaces" not in without and _attempt(held, "namespaces", ["network"], _new_namespaces):
        arguments = (os.getcwd(), readable, order["limits"]["disk_mb"])
        if _attempt(held, "own root", ["files"], _new_root, *arguments):
            writable = [WORK, "/tmp"]
        child = os.fork()
        if child:
            os.close(channel)
            status = os.waitpid(child, 0)[1]
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    if "Landlock" not in without:
        _attempt(held, "Landlock", ["files"], _landlock, readable, writable)
    _attempt(held, "no capabilities", [], _drop_capabilities)
    # Changing rights resets this signal, so it comes after; the filter keeps it.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _limit(order["limits"])
    _attempt(held, "system-call filter", ["network", "processes"], _filter_system_calls)
    open_to = [kind for kind in ("files", "network", "processes") if not held[kind]]
    _tell(channel, {"held": held, "open": open_to})
    if open_to:
        os._exit(1)
    sys.path += order["packages"]
    nonce = order.pop("nonce")
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        _tell(channel, {"passed": None, "error": text[:500]})
        os._exit(1)
    _tell(channel, {"passed": nonce})
    os._exit(0)


if __name__ == "__main__":
    main()
