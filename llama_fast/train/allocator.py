"""How memory is taken from the system in a process that trains on a CPU.

Every step frees what the one before it took. By default glibc gives large pieces back at once, and
the next step pays for them again, in page faults: a third of a step in bfloat16 of the 58 M model
of `make bench-train` on a virtual machine, for a tenth less memory.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Read by torch at its first large allocation: it has to be there before.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
# Parameters of mallopt(3), and values: what is freed at the top of the heap stays there; pieces of
# up to 32 MB, the most that glibc allows, come from the heap.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEEP, LARGEST = (1 << 31) - 1, 32 << 20


def keep_memory() -> bool:
    """Take memory in huge pages, and keep what is freed for the next step; call it once, early.

    For the whole process, so it is for programs, not for libraries. An environment that says
    something else about either is left as it is.

    Returns:
        Whether freed memory is kept: not where the C library is another than glibc, nor where
        `MALLOC_TRIM_THRESHOLD_` or `MALLOC_MMAP_THRESHOLD_` is set.
    """
    if not sys.platform.startswith("linux"):
        return False
    os.environ.setdefault(HUGE_PAGES, "1")
    if "MALLOC_TRIM_THRESHOLD_" in os.environ or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    set_threshold = library.mallopt(MMAP_THRESHOLD, LARGEST)
    return bool(set_threshold and library.mallopt(TRIM_THRESHOLD, KEEP))
