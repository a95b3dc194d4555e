"""Recognises errors that mean that memory ran out."""

from __future__ import annotations

import re

import torch

__all__ = ["is_out_of_memory"]

# Texts of PyTorch's and C++'s plain RuntimeError when CPU memory runs out, and of errors that quote
# it.
_SIGNS = re.compile(
    r"can't allocate memory|not enough memory|bad_alloc|Cannot allocate memory|out of memory"
    r"|Storage size calculation overflowed"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error means that memory ran out, on a GPU or the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(_SIGNS.search(str(error)))
