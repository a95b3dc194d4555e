"""Measures the machine's limits with torch: matrix products, reading and copying memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from .cases import DTYPES
from .measure import seconds


def _rate(work: float, step: Callable[[], object], device: str, rounds: int) -> float:
    step()
    return work / statistics.median(seconds(step, 1, device) for _ in range(rounds))


def measure_limits(
    device: str, quick: bool = False, progress: Callable[[str], None] = lambda what: None
) -> dict[str, float]:
    """The best rates that torch reaches on large operands.

    Args:
        device: "cpu" or "cuda".
        quick: whether to use small operands.
        progress: called with a description of the next measurement.

    Returns:
        "gemm float32" and "gemm bfloat16" in FLOP/s (torch.mm of square matrices, the best of two
        sizes), "read" in bytes/s (the better of a maximum and a sum over memory) and "copy" in
        bytes/s (to existing memory; the bytes read and the bytes written both count).
    """
    gpu = device == "cuda"
    sizes = (256, 512) if quick else (8192, 16384) if gpu else (2048, 4096)
    rounds = 3 if quick else 5
    limits = {}
    for name, dtype in DTYPES.items():
        rates = []
        for n in sizes:
            progress(f"torch.mm {n}×{n} {name}")
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            out = torch.empty_like(a)
            rates.append(_rate(2.0 * n**3, lambda: torch.mm(a, b, out=out), device, rounds))  # noqa: B023
        limits[f"gemm {name}"] = max(rates)
    bytes_ = (16 if quick else 4096 if gpu else 512) << 20
    progress("reading and copying memory")
    source = torch.ones(bytes_ // 4, device=device)
    target = torch.empty_like(source)
    reads = (source.amax, source.sum)
    limits["read"] = max(_rate(bytes_, step, device, rounds) for step in reads)
    limits["copy"] = _rate(2.0 * bytes_, lambda: target.copy_(source), device, rounds)
    return limits
