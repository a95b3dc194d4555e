"""Guards that confine a process: namespaces, its own root, Landlock, no capabilities, limits.

The order matters: namespaces first, because they need rights; then Landlock, capabilities and
limits; last the system-call filter of :mod:`calls`, which forbids the calls of the others.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
WORK = "/sandbox"
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 1, 38, 24
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT, SYS_MOUNT_SETATTR = 444, 445, 446, 442


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(number: int, *args: int | bytes | None) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *args))


def _mount(
    source: str | None, target: str, filesystem: str | None, flags: int, data: str | None = None
) -> None:
    raw = [None if text is None else text.encode() for text in (source, target, filesystem, data)]
    _check(_libc.mount(raw[0], raw[1], raw[2], ctypes.c_ulong(flags), raw[3]))


def new_namespaces() -> None:
    """Enter new user, mount, process, network, IPC and host-name namespaces."""
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


def new_root(root: str, readable: list[str], megabytes: int) -> None:
    """Switch to a read-only root with the readable paths and two empty folders of bounded size."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
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
        # No set-user-id, recursively; no devices except in /dev.
        _read_only(target, AT_RECURSIVE, 0x2 | (0 if path.startswith("/dev/") else 0x4))
    for folder in (WORK, "/tmp", "/.outside"):
        os.makedirs(root + folder, exist_ok=True)
    scratch = root + "/.outside"
    size = f"size={megabytes}m,nr_inodes=4096,mode=755"
    _mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, size)
    for folder in (WORK, "/tmp"):
        os.mkdir(scratch + folder)
        _mount(scratch + folder, root + folder, None, MS_BIND)
    _check(_libc.umount2(scratch.encode(), MNT_DETACH))
    pivot = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _syscall(pivot, root.encode(), (root + "/.outside").encode())
    os.chdir(WORK)
    _check(_libc.umount2(b"/.outside", MNT_DETACH))
    os.rmdir("/.outside")
    _read_only("/", 0, 0)


def _read_only(mount: str, recursive: int, more: int) -> None:
    attributes = struct.pack("=QQQQ", 0x1 | more, 0, 0, 0)
    _syscall(SYS_MOUNT_SETATTR, AT_FDCWD, mount.encode(), recursive, attributes, len(attributes))


def landlock(readable: list[str], writable: list[str]) -> None:
    """Restrict the process to reading ``readable`` and full access to ``writable``, without TCP."""
    version = _syscall(SYS_LANDLOCK_CREATE, None, 0, 1)
    if version < 3:
        raise OSError(f"version {version} does not restrict truncation")
    files = (1 << 15) - 1
    if version >= 5:
        files |= 1 << 15  # ioctl on devices
    network = 0b11 if version >= 4 else 0
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals of others
    attributes = struct.pack("=QQQ", files, network, scoped)
    attributes = attributes[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = _syscall(SYS_LANDLOCK_CREATE, attributes, len(attributes), 0)
    rights = [(path, 0b1100) for path in readable]  # read, list
    rights += [(path, files & ~0b1) for path in writable]
    rights += [("/dev/null", 0b110), ("/dev/zero", 0b100), ("/dev/urandom", 0b100)]
    for path, allowed in rights:
        if not os.path.exists(path):
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            allowed &= 0b111  # the other rights apply to folders only
        rule = struct.pack("=Qi", allowed, handle)
        _syscall(SYS_LANDLOCK_ADD, rules, 1, rule, 0)
        os.close(handle)
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _syscall(SYS_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def drop_capabilities() -> None:
    """Drop all capabilities."""
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header = struct.pack("=Ii", 0x20080522, 0)
    _check(_libc.capset(header, struct.pack("=6I", 0, 0, 0, 0, 0, 0)))


def limit(limits: dict[str, int]) -> None:
    """Set resource limits of this process, which it cannot raise again."""
    megabyte = 1 << 20
    values = {
        resource.RLIMIT_AS: limits["memory_mb"] * megabyte,
        resource.RLIMIT_CPU: math.ceil(limits["cpu_seconds"]),
        resource.RLIMIT_NPROC: 0,  # no threads; root is exempt, but the filter covers it
        resource.RLIMIT_FSIZE: limits["file_mb"] * megabyte,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for resource_id, value in values.items():
        hard = resource.getrlimit(resource_id)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(resource_id, (value, value))
