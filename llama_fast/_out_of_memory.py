"""Whether an error means that memory was used up."""

from __future__ import annotations

import re

import torch

__all__ = ["is_out_of_memory"]

# What PyTorch and C++ write in a plain RuntimeError when the CPU's memory is used up, and in errors
# that repeat it.
_SIGNS = re.compile(
    r"can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory|out of memory"
    r"|Storage size calculation overflowed"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory was used up, on a GPU or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_SIGNS.search(str(error)))
