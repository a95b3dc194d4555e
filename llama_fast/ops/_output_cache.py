"""The cache of memory for large CPU outputs (csrc/glue/output_cache.cpp).

Environment:
    LLAMA_FAST_CACHE_MB  MiB that may be kept while no tensor uses them (default 512, 0: none)
"""

from __future__ import annotations

import os

import torch

from llama_fast.ops.backends import library


def _check_limit(value: str) -> None:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"LLAMA_FAST_CACHE_MB: expected a whole number of MiB, got {value!r}")


_check_limit(os.environ.get("LLAMA_FAST_CACHE_MB", "0"))


def empty_cache() -> int:
    """Return idle memory of the CPU kernels to the system; the CPU's `torch.cuda.empty_cache`.

    The memory of outputs and gradients of 4 MiB and more is kept when they are freed, up to
    LLAMA_FAST_CACHE_MB (environment, default 512) in total, because the page faults of new memory
    take longer than most of these kernels. Under memory pressure Linux reclaims it, and an
    allocation of ours that fails frees it and tries again. Each thread also keeps the working
    memory of its kernels; this returns that of threads in which no kernel runs.

    Returns:
        The number of bytes returned; 0 without the compiled library. Outputs are kept on Linux,
        with torch 2.11 and later.
    """
    return 0 if library.missing_reason is not None else torch.ops.llama_fast.empty_cache()
