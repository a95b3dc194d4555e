"""Tile sizes and splits of the attention kernels, by architecture and head size.

The numbers are the largest tiles that spill no register and fit in shared memory
(`make gpu-compile` shows both).
"""

from __future__ import annotations

import torch

from ._attention_plan import (
    MIN_DOT_SIZE,
    AttentionProblem,
    Tiling,
    dot_size,
    supports_descriptor,
)
from ._launch import Gpu

Tensors = tuple[torch.Tensor, ...]

CACHE_BYTES = 32 << 20  # part of the L2 cache that keys and values may take
MAX_SHARED_ROWS = 64  # up to this many rows, all heads of a group share one tile
MIN_SPLIT_KEYS = 256  # smallest number of keys in a split


def heads_per_tile(problem: AttentionProblem) -> int:
    """Heads of a group that share a tile of queries: all if there are few queries, else one."""
    few = problem.queries * problem.group <= MAX_SHARED_ROWS and not problem.packed
    return problem.group if few else 1


def section_size(problem: AttentionProblem, group: int) -> int:
    """Number of groups of `group` query heads whose keys and values together fit in the cache."""
    numbers = problem.keys * (problem.head_size + problem.value_size)
    kv_heads = CACHE_BYTES // max(1, numbers * problem.dtype.itemsize)
    return max(1, kv_heads) * problem.group // group


def key_splits(problem: AttentionProblem, gpu: Gpu, programs: int, keys: int) -> int:
    """The number of splits of each tile's keys, chosen to occupy the GPU."""
    if problem.packed or 2 * programs > gpu.processors:
        return 1
    max_splits = problem.keys // max(MIN_SPLIT_KEYS, keys)
    return max(1, min(max_splits, 2 * gpu.processors // programs))


_SIZES = (64, 128, 256, 512)
# The larger head size -> (M, N, warps, stages). 16-bit inputs have tables for scores that are plain
# products, read through tensor descriptors ("descriptors") or pointers ("plain"), and for scores
# with any option ("modified"). Numbers for one architecture have its name after the key.
_FORWARD = {
    "descriptors": {
        64: (128, 128, 8, 3), 128: (128, 64, 8, 3), 256: (128, 32, 8, 2), 512: (32, 32, 8, 2),
    },
    "plain": {64: (128, 64, 4, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2), 512: (32, 32, 8, 1)},
    "modified": {64: (64, 32, 4, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 1), 512: (32, 16, 8, 1)},
    "plain 80": {64: (64, 32, 4, 2), 128: (64, 64, 4, 2)},
    "modified 80": {64: (32, 32, 4, 2)},
    "plain 100": {64: (64, 64, 4, 2)},
    "float32": {64: (64, 32, 8, 1), 128: (16, 32, 8, 1), 256: (16, 32, 8, 1), 512: (16, 16, 8, 1)},
    "float64": dict.fromkeys(_SIZES, (16, 32, 8, 1)),
}  # fmt: skip
_QUERY_GRAD = {
    "descriptors": {
        64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (128, 16, 8, 2), 512: (32, 32, 8, 1),
    },
    "plain": {64: (128, 64, 8, 2), 128: (64, 64, 8, 1), 256: (32, 32, 8, 1), 512: (32, 16, 8, 1)},
    "modified": {64: (64, 32, 8, 2), 128: (32, 32, 8, 1), 256: (32, 32, 8, 1), 512: (16, 16, 8, 1)},
    "modified 80": {64: (32, 32, 4, 2)},
    "descriptors 100": {128: (64, 64, 8, 2)},
    "float32": {64: (32, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 8, 1)},
    "float64": dict.fromkeys(_SIZES, (16, 16, 8, 1)),
}  # fmt: skip
_KEY_GRAD = {
    "descriptors": {
        64: (64, 128, 8, 3), 128: (32, 64, 8, 2), 256: (16, 64, 8, 2), 512: (16, 32, 8, 1),
    },
    "plain": {64: (32, 128, 8, 1), 128: (16, 128, 8, 2), 256: (16, 32, 4, 2), 512: (16, 32, 8, 1)},
    "modified": {64: (32, 32, 4, 1), 128: (32, 32, 4, 1), 256: (16, 16, 4, 1), 512: (16, 16, 8, 1)},
    "plain 80": {64: (16, 64, 4, 2), 128: (16, 64, 4, 2)},
    "modified 80": {64: (16, 32, 4, 1), 128: (16, 32, 4, 1)},
    "descriptors 100": {64: (32, 128, 8, 2), 128: (32, 128, 8, 1), 256: (16, 64, 8, 1)},
    "plain 100": {64: (32, 128, 8, 2), 128: (16, 32, 8, 2), 256: (16, 32, 8, 2)},
    "float32 100": {64: (16, 16, 8, 1)},
    "float32": {64: (16, 32, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1), 512: (16, 16, 8, 1)},
    "float64": dict.fromkeys(_SIZES, (16, 32, 8, 1)),
}  # fmt: skip


def _tilings(
    table: dict[str, dict[int, tuple[int, int, int, int]]],
    problem: AttentionProblem,
    gpu: Gpu,
    operands: Tensors,
) -> list[Tiling]:
    """The table's entry for a problem whose loops read `operands`, then its alternatives."""
    size = next(n for n in _SIZES if n >= block_size(problem))

    def tiling(key: str) -> Tiling:
        return Tiling(*table.get(f"{key} {gpu.arch}", {}).get(size, table[key][size]))

    if problem.dtype.itemsize > 2:
        return [tiling("float32" if problem.dtype.itemsize == 4 else "float64")]
    if problem.modifies_scores:
        return [tiling("modified")]
    plain = tiling("plain")
    if gpu.arch < 90 or not all(map(supports_descriptor, operands)):
        return [plain]
    first = tiling("descriptors")._replace(tma=True)
    # On sm_90 Triton 3.9 generates the same code with warp specialisation as without.
    if gpu.arch >= 100:
        return [first, plain, first._replace(specialize=True)]
    deeper = [first._replace(stages=first.stages + 1)] if size <= 128 else []
    return [first, plain, *deeper]


def forward_tilings(
    problem: AttentionProblem, gpu: Gpu, rows: int, operands: Tensors
) -> list[Tiling]:
    """The forward kernel's tiling for `rows` queries per head, then its alternatives.

    Here and below, `operands` are the tensors that the kernel's loop reads.
    """
    tilings = _tilings(_FORWARD, problem, gpu, operands)
    max_rows = dot_size(rows)
    # Packed keys are read through pointers, which take registers and so need more warps.
    return [
        t._replace(M=max_rows, warps=t.warps if problem.packed else 4) if max_rows < t.M else t
        for t in tilings
    ]


def query_grad_tilings(problem: AttentionProblem, gpu: Gpu, operands: Tensors) -> list[Tiling]:
    """The tiling of the query gradients' kernel, then its alternatives."""
    return _tilings(_QUERY_GRAD, problem, gpu, operands)


def key_grad_tilings(problem: AttentionProblem, gpu: Gpu, operands: Tensors) -> list[Tiling]:
    """The tiling of the key gradients' kernel, then its alternatives."""
    return _tilings(_KEY_GRAD, problem, gpu, operands)


def block_size(problem: AttentionProblem) -> int:
    """The larger head size."""
    return max(dot_size(problem.head_size), dot_size(problem.value_size))


def separate_key_value_grads(problem: AttentionProblem, gpu: Gpu, tiling: Tiling) -> bool:
    """Whether dk and dv need a launch each, because together they do not fit in registers."""
    max_size = 128 if tiling.tma and gpu.arch < 100 else 64
    return block_size(problem) > max_size or problem.dtype.itemsize == 8


def row_tiling(problem: AttentionProblem) -> Tiling:
    """The tiling for sums over a row, which are matrix products for float32 and float64."""
    if problem.dtype.itemsize > 2:
        return Tiling(MIN_DOT_SIZE, MIN_DOT_SIZE)
    return Tiling(max(1, 4096 // dot_size(problem.value_size)), MIN_DOT_SIZE)


def bias_grad_tiling(problem: AttentionProblem, gpu: Gpu) -> Tiling:
    """The tiling for the gradient of a bias."""
    size = min(64, 4096 // block_size(problem)) // (1 if problem.dtype.itemsize == 2 else 2)
    return Tiling(max(MIN_DOT_SIZE, size), max(MIN_DOT_SIZE, size), warps=8)
