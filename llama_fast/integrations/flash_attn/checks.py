"""Checks of the flash-attn functions' arguments, in flash-attn's names and layouts.

They run before the checks of the ops, whose errors would name other arguments and other layouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from llama_fast.ops import _checks

INDEX_DTYPES = (torch.int32, torch.int64)


def host_values(t: torch.Tensor) -> bool:
    """Whether the values of `t` can be read without synchronising with a GPU."""
    return t.device.type == "cpu" and not torch.compiler.is_compiling()


def heads(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layouts: tuple[str, str, str],
    names: tuple[str, str, str] = ("q", "k", "v"),
) -> None:
    """Check the dimensions of queries (.., H, D), keys (.., K, D) and values (.., K, Dv)."""
    for name, t, layout in zip(names, (q, k, v), layouts, strict=True):
        _checks.check_float(name, t)
        _checks.check_dim(name, t, layout.split(" or ")[0].count(",") + 1, layout)
    (H, D), (K, keys_D) = q.shape[-2:], k.shape[-2:]
    if keys_D != D:
        raise ValueError(f"{names[1]}: expected the head size of {names[0]}, {D}, got {keys_D}")
    if v.shape[:-1] != k.shape[:-1]:
        raise ValueError(
            f"{names[2]}: expected the shape of {names[1]} but for the last dimension, "
            f"{_checks.shape(k)}, got {_checks.shape(v)}"
        )
    if (K == 0 and H != 0) or (K != 0 and H % K != 0):
        raise ValueError(
            f"{names[1]}: expected a number of heads that divides the {H} heads of {names[0]}, "
            f"got {K}"
        )


def packed(name: str, t: torch.Tensor, parts: int, dim: int, layout: str) -> None:
    """Check that `t` is `parts` tensors stacked along dimension `dim`."""
    _checks.check_float(name, t)
    _checks.check_dim(name, t, layout.split(" or ")[0].count(",") + 1, layout)
    if t.shape[dim] != parts:
        raise ValueError(f"{name}: expected shape {layout}, got {_checks.shape(t)}")


def options(
    softmax_scale: float | None,
    causal: bool,
    window_size: Sequence[int],
    softcap: float,
    alibi_slopes: torch.Tensor | None,
) -> dict[str, Any]:
    """Check these arguments; return them under their names in :func:`llama_fast.attention`."""
    if softmax_scale is not None:
        softmax_scale = _number("softmax_scale", softmax_scale, "a finite number or None")
    softcap = _number("softcap", softcap, "a finite number, 0 for none")
    sides, expected = _checks.pair(window_size), "a pair of ints (left, right), -1 for no bound"
    if sides is None:
        raise TypeError(f"window_size: expected {expected}, got {window_size!r}")
    left, right = (_checks.integer("window_size", side, expected) for side in sides)
    window = (max(left, -1), max(right, -1))
    return {
        "scale": softmax_scale,
        "causal": bool(causal),
        "window": None if window == (-1, -1) else window,
        "softcap": softcap if softcap > 0 else None,
        "alibi_slopes": alibi_slopes,
    }


def _number(name: str, value: Any, expected: str) -> Any:
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    value = _checks.number(name, value, expected)
    if not isinstance(value, torch.SymInt | torch.SymFloat):
        _checks.check_number(name, value, expected, math.isfinite(value))
    return value


def indices(name: str, t: Any, shape: tuple[int, ...], layout: str, q: torch.Tensor) -> Any:
    """Check dtype (int32 or int64), shape and device of `t`; return it as int32."""
    _checks.check_tensor(name, t, INDEX_DTYPES, "int32 or int64")
    _checks.check_shape(name, t, shape, layout)
    _checks.check_device(name, t, "q", q)
    return t.to(torch.int32)


def offsets(name: str, cu: Any, rows: int, max_name: str, max_length: int) -> int:
    """Check the offsets of packed sequences; return how many rows they cover.

    If the values cannot be read, return `rows`.
    """
    _checks.check_tensor(name, cu, INDEX_DTYPES, "int32 or int64")
    if cu.dim() != 1 or cu.numel() == 0:
        raise ValueError(f"{name}: expected shape (sequences + 1,), got {_checks.shape(cu)}")
    if not host_values(cu):
        return rows
    values = cu.tolist()
    if values[0] != 0 or values[-1] > rows:
        raise ValueError(
            f"{name}: expected offsets from 0 to at most the number of rows, {rows}, "
            f"got {values[0]} to {values[-1]}"
        )
    longest = 0
    for i, (a, b) in enumerate(pairwise(values)):
        if b < a:
            raise ValueError(
                f"{name}: expected offsets that do not decrease, got {a} then {b} "
                f"at position {i + 1}"
            )
        longest = max(longest, b - a)
    if max_length < longest:
        raise ValueError(
            f"{max_name}: expected at least the length of the longest sequence in {name}, "
            f"{longest}, got {max_length}"
        )
    return int(values[-1])


def pages(
    table: torch.Tensor, first: Sequence[int], end: Sequence[int], size: int, count: int
) -> None:
    """Check that the pages with the keys [first, end) of each sequence exist."""
    for b, row in enumerate(table.tolist()):
        for i in range(first[b] // size, -(-end[b] // size)):
            if not 0 <= row[i] < count:
                raise ValueError(
                    f"block_table: expected pages in [0, {count}), got {row[i]} "
                    f"at position ({b}, {i})"
                )
