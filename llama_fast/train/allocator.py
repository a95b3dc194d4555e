"""Settings of the C library's allocator for training on a CPU.

Each step frees the memory that it allocated. By default glibc returns large blocks to the system at
once, and the next step allocates them again with page faults. This takes up to a third of the time
of a step in bfloat16 (58 M model of `make bench-train`, with other processes using memory), and
saves a tenth of the memory.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3), and a value with which no block is mapped separately and freed memory at
# the top of the heap is not returned.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
MAX_VALUE = (1 << 31) - 1
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_memory() -> bool:
    """Make the allocator keep freed memory for the next step; call it once, early.

    It affects the whole process, so call it from programs, not from libraries.

    Returns:
        Whether freed memory is kept: False if the C library is not glibc, or if the environment has
        its own settings (`SETTINGS`).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, MAX_VALUE))
