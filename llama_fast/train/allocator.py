"""How memory is taken from the system in a process that trains on a CPU.

Every step frees what the one before it took. By default glibc gives large pieces back at once, and
the next step pays for them again in page faults: up to a third of a step in bfloat16 of the 58 M
model of `make bench-train` where other processes want memory too, for a tenth less of it.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3), and values: no piece is mapped by itself, and what is freed at the top
# of the heap stays there.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
LARGEST = (1 << 31) - 1
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_memory() -> bool:
    """Keep what is freed for the next step; call it once, early.

    For the whole process, so it is for programs, not for libraries.

    Returns:
        Whether freed memory is kept: not where the C library is another than glibc, nor where the
        environment has settings of its own (`SETTINGS`).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, LARGEST))
