"""How the attention kernels are cut into programs: a rule for each architecture and head size.

The numbers are the largest tiles that leave no register spilled and fit the shared memory
(`make gpu-compile` shows both).
"""

from __future__ import annotations

from llama_fast.kernels._attention_plan import Problem, Tiling, power_of_two
from llama_fast.kernels._launch import Gpu

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


def forward_tilings(problem: Problem, gpu: Gpu, rows: int) -> list[Tiling]:
    """The forward kernel's tiling for `rows` queries a head, and alternatives to it."""
    return [Tiling(32, 32)]


def query_grad_tilings(problem: Problem, gpu: Gpu) -> list[Tiling]:
    """The same for the gradients of queries."""
    return [Tiling(32, 32)]


def key_grad_tilings(problem: Problem, gpu: Gpu) -> list[Tiling]:
    """The same for the gradients of keys."""
    return [Tiling(32, 32)]


def row_tiling(problem: Problem) -> Tiling:
    """The tiling for what needs no products between rows."""
    return Tiling(max(1, 4096 // power_of_two(problem.value_size)), 16)


def bias_grad_tiling(problem: Problem) -> Tiling:
    """The tiling for the gradient of a bias."""
    return Tiling(32, 32)
