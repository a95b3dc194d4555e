"""How the attention kernels are cut into programs: a rule for each architecture and head size.

The numbers are the largest tiles that leave no register spilled and fit the shared memory
(`make gpu-compile` shows both).
"""

from __future__ import annotations

import torch
from llama_fast.kernels._attention_plan import (
    SMALLEST_DOT,
    Problem,
    Tiling,
    describable,
    power_of_two,
)
from llama_fast.kernels._launch import Gpu

Tensors = tuple[torch.Tensor, ...]

CACHE_BYTES = 32 << 20  # of the second-level cache, for keys and values
FEW_ROWS = 64  # up to here the queries of all heads of a group share one tile
SHORTEST_SHARE = 256  # keys


def shared_heads(problem: Problem) -> int:
    """Heads of a group that share a tile of queries: all where they have few queries, or one."""
    few = problem.queries * problem.group <= FEW_ROWS and not problem.packed
    return problem.group if few else 1


def heads_together(problem: Problem, group: int) -> int:
    """Groups of `group` query heads whose keys and values stay in the cache together."""
    numbers = problem.keys * (problem.head_size + problem.value_size)
    kv_heads = CACHE_BYTES // max(1, numbers * problem.dtype.itemsize)
    return max(1, kv_heads) * problem.group // group


def key_shares(problem: Problem, gpu: Gpu, programs: int, keys: int) -> int:
    """Shares into which the keys of each tile are cut, to occupy the device."""
    if problem.packed or 2 * programs > gpu.processors:
        return 1
    most = problem.keys // max(SHORTEST_SHARE, keys)
    return max(1, min(most, 2 * gpu.processors // programs))


_SIZES = (64, 128, 256, 512)
# (M, N, warps, stages) by the larger head size: for scores that are bare products, read through
# tensor descriptors or through addresses, for scores with anything added ("rich"), for float32
# ("wide") and for float64 ("double"). What differs on one architecture stands beside it.
_FORWARD = {
    "descriptors": {
        64: (128, 128, 8, 3), 128: (128, 64, 8, 3), 256: (128, 32, 8, 2), 512: (32, 32, 8, 2),
    },
    "bare": {64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2), 512: (32, 32, 8, 1)},
    "rich": {64: (64, 32, 4, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 1), 512: (32, 16, 8, 1)},
    "bare 80": {64: (64, 32, 4, 2), 128: (64, 64, 4, 2)},
    "rich 80": {64: (32, 32, 4, 2)},
    "bare 100": {64: (64, 64, 4, 2)},
    "wide": {64: (64, 32, 8, 1), 128: (16, 32, 8, 1), 256: (16, 32, 8, 1), 512: (16, 16, 8, 1)},
    "double": dict.fromkeys(_SIZES, (16, 32, 8, 1)),
}  # fmt: skip
_QUERY_GRAD = {
    "descriptors": {
        64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (128, 16, 8, 2), 512: (32, 32, 8, 1),
    },
    "bare": {64: (128, 64, 8, 2), 128: (64, 64, 8, 1), 256: (32, 32, 8, 1), 512: (32, 16, 8, 1)},
    "rich": {64: (64, 32, 8, 2), 128: (32, 32, 8, 1), 256: (32, 32, 8, 1), 512: (16, 16, 8, 1)},
    "rich 80": {64: (32, 32, 4, 2)},
    "descriptors 100": {128: (64, 64, 8, 2)},
    "wide": {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 8, 1)},
    "double": dict.fromkeys(_SIZES, (16, 16, 8, 1)),
}  # fmt: skip
_KEY_GRAD = {
    "descriptors": {
        64: (64, 128, 8, 3), 128: (32, 64, 8, 2), 256: (16, 64, 8, 2), 512: (16, 32, 8, 1),
    },
    "bare": {64: (32, 128, 8, 1), 128: (16, 128, 8, 2), 256: (16, 32, 4, 2), 512: (16, 32, 8, 1)},
    "rich": {64: (32, 32, 4, 1), 128: (32, 32, 4, 1), 256: (16, 16, 4, 1), 512: (16, 16, 8, 1)},
    "bare 80": {64: (16, 64, 4, 2), 128: (16, 64, 4, 2)},
    "rich 80": {64: (16, 32, 4, 1), 128: (16, 32, 4, 1)},
    "descriptors 100": {64: (32, 128, 8, 2), 128: (32, 128, 8, 1), 256: (16, 64, 8, 1)},
    "bare 100": {64: (32, 128, 8, 2), 128: (16, 32, 8, 2), 256: (16, 32, 8, 2)},
    "wide 100": {64: (16, 16, 8, 1)},
    "wide": {64: (16, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 8, 1)},
    "double": dict.fromkeys(_SIZES, (16, 32, 8, 1)),
}  # fmt: skip


def _tilings(
    table: dict[str, dict[int, tuple[int, ...]]], problem: Problem, gpu: Gpu, steps: Tensors
) -> list[Tiling]:
    """The table's entry for a problem whose loops read `steps`."""
    size = next(n for n in _SIZES if n >= block_size(problem))

    def tiling(kind: str) -> Tiling:
        return Tiling(*table.get(f"{kind} {gpu.arch}", {}).get(size, table[kind][size]))

    if problem.dtype.itemsize > 2:
        return [tiling("wide" if problem.dtype.itemsize == 4 else "double")]
    if problem.rich:
        return [tiling("rich")]
    bare = tiling("bare")
    if gpu.arch < 90 or not all(map(describable, steps)):
        return [bare]
    first = tiling("descriptors")._replace(tma=True)
    # On sm_90 Triton 3.9 makes the same code with warp specialisation as without.
    if gpu.arch >= 100:
        return [first, bare, first._replace(specialize=True)]
    deeper = [first._replace(stages=first.stages + 1)] if size <= 128 else []
    return [first, bare, *deeper]


def forward_tilings(problem: Problem, gpu: Gpu, rows: int, steps: Tensors) -> list[Tiling]:
    """The forward kernel's tiling for `rows` queries a head, and alternatives to it.

    `steps` are the tensors that its loop reads, here and below.
    """
    found = _tilings(_FORWARD, problem, gpu, steps)
    few = power_of_two(rows)
    # Packed keys go through addresses, which take registers: more warps share a step of them.
    keep = problem.packed
    return [t._replace(M=few, warps=t.warps if keep else 4) if few < t.M else t for t in found]


def query_grad_tilings(problem: Problem, gpu: Gpu, steps: Tensors) -> list[Tiling]:
    """The same for the gradients of queries."""
    return _tilings(_QUERY_GRAD, problem, gpu, steps)


def key_grad_tilings(problem: Problem, gpu: Gpu, steps: Tensors) -> list[Tiling]:
    """The same for the gradients of keys."""
    return _tilings(_KEY_GRAD, problem, gpu, steps)


def block_size(problem: Problem) -> int:
    """The larger head size."""
    return max(power_of_two(problem.head_size), power_of_two(problem.value_size))


def keys_and_values_apart(problem: Problem, gpu: Gpu, tiling: Tiling) -> bool:
    """Whether dk and dv are made by kernels of their own: both do not fit the registers."""
    most = 128 if tiling.tma and gpu.arch < 100 else 64
    return block_size(problem) > most or problem.dtype.itemsize == 8


def row_tiling(problem: Problem) -> Tiling:
    """The tiling for sums over the numbers of a row, in float32 made by products of rows."""
    if problem.dtype.itemsize > 2:
        return Tiling(SMALLEST_DOT, SMALLEST_DOT)
    return Tiling(max(1, 4096 // power_of_two(problem.value_size)), SMALLEST_DOT)


def bias_grad_tiling(problem: Problem, gpu: Gpu) -> Tiling:
    """The tiling for the gradient of a bias."""
    size = min(64, 4096 // block_size(problem)) // (1 if problem.dtype.itemsize == 2 else 2)
    return Tiling(max(SMALLEST_DOT, size), max(SMALLEST_DOT, size), warps=8)
