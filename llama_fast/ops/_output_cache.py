"""The cache of memory for large CPU outputs (csrc/glue/output_cache.cpp).

Environment:
    LLAMA_FAST_CACHE_MB  MiB that may be kept while no tensor uses them (default 512; 0 keeps none)
"""

from __future__ import annotations

import torch

from llama_fast.ops.backends import library


def empty_cache() -> int:
    """Return idle memory of the CPU kernels to the system, like `torch.cuda.empty_cache` for GPUs.

    When outputs and gradients of 4 MiB and more are freed, their memory is kept for the next ones,
    up to LLAMA_FAST_CACHE_MB MiB (environment variable, default 512) in total, because the page
    faults of new memory take longer than most kernels. Linux reclaims kept memory under memory
    pressure, and an allocation of a kernel that fails frees it and tries again. Each thread also
    keeps the working memory of its kernels; this function returns that of threads without a
    running kernel.

    Returns:
        The number of bytes returned, 0 without the compiled library. Memory of outputs is kept
        only on Linux with torch 2.11 and later.
    """
    return 0 if library.missing_reason is not None else torch.ops.llama_fast.empty_cache()
