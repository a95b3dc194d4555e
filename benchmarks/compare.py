"""Ratios to rivals: both sides in one process, alternating, medians. Prints a markdown table.

python -m benchmarks.compare [--rounds 9] [--op attention]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.cases import CASES
from benchmarks.peers import peers


def medians(steps: list[Callable[[], None]], rounds: int) -> list[float]:
    """Median milliseconds of each step; the steps take turns, so that noise meets them alike."""
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:  # compile, fill caches
        step()
        step()
    for _ in range(rounds):
        for step, taken in zip(steps, times, strict=True):
            begin = time.perf_counter()
            step()
            taken.append(time.perf_counter() - begin)
    return [1e3 * statistics.median(taken) for taken in times]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--op", choices=sorted({case.op for case in CASES}))
    args = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {args.rounds}\n"
    )
    print("| forward + backward | shape | dtype | llama_fast | rivals |")
    print("| --- | --- | --- | --- | --- |")
    for case in CASES:
        if args.op not in (None, case.op):
            continue
        contenders = peers(case.op)
        taken = medians([case.step(peer) for peer in contenders], args.rounds)
        measured = [(peer.name, ms) for peer, ms in zip(contenders, taken, strict=True)]
        for name, ours in (m for m in measured if m[0].startswith("llama_fast")):
            rivals = ", ".join(
                f"{rival} {ms:.1f} ms (**{ms / ours:.1f}×**)"
                for rival, ms in measured
                if not rival.startswith("llama_fast")
            )
            variant = case.op + name.removeprefix("llama_fast")
            row = (variant, case.shape, case.dtype, f"{ours:.1f} ms", rivals)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
