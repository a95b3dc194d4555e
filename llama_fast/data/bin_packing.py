"""Assigns sequences to rows of fixed length: best-fit decreasing, compiled or in NumPy.

The compiled operators (csrc/cpu/bin_packing.cpp) are used where they were built; the functions in
NumPy give equal results.
"""

from __future__ import annotations

import bisect
import operator

import numpy as np
import numpy.typing as npt
import torch

from llama_fast.ops.backends import library

_INT32_MAX = 2**31 - 1


def pack_sequences(lengths: npt.ArrayLike, capacity: int) -> tuple[npt.NDArray[np.int64], int]:
    """Pack sequences into bins of equal capacity by best-fit decreasing.

    The longest sequence comes first; each goes into the fullest bin that still has room. Ties are
    resolved by index. The result never has more bins than next fit, which packs the sequences in
    the given order.

    Args:
        lengths: (n,) integers, number of tokens in each sequence.
        capacity: number of tokens in a bin.

    Returns:
        ``(bin_of, n_bins)``: the bin of each sequence, int64 (n,), and the number of bins.

    Raises:
        TypeError: `lengths` are not integers.
        ValueError: `lengths` is not a vector, or a length is negative or exceeds the capacity.
    """
    if library.missing_reason is not None:
        return pack_sequences_numpy(lengths, capacity)
    values = torch.from_numpy(_as_lengths(lengths))
    bin_of, n_bins = torch.ops.llama_fast.pack_sequences(values, operator.index(capacity))
    return bin_of.numpy(), n_bins


def cu_seqlens(lengths: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Cumulative lengths 0, l0, l0+l1, ... (n+1,), as packed attention takes them.

    Raises:
        TypeError: `lengths` are not integers.
        ValueError: `lengths` is not a vector, a length is negative, or the sum exceeds int32.
    """
    if library.missing_reason is not None:
        return cu_seqlens_numpy(lengths)
    return torch.ops.llama_fast.cu_seqlens(torch.from_numpy(_as_lengths(lengths))).numpy()


def pack_sequences_numpy(
    lengths: npt.ArrayLike, capacity: int
) -> tuple[npt.NDArray[np.int64], int]:
    """As :func:`pack_sequences`, in NumPy."""
    values = _as_lengths(lengths)
    if capacity < 1:
        raise ValueError(f"capacity: expected a positive number, got {capacity}")
    wrong = np.flatnonzero((values < 0) | (values > capacity))
    if len(wrong):
        raise ValueError(
            f"lengths[{wrong[0]}]: expected a length from 0 to the capacity of {capacity}, "
            f"got {values[wrong[0]]}"
        )
    best, n_best = _best_fit_decreasing(values, capacity)
    # In rare cases next fit is better: 4 3 3 | 4 3 3 fills two bins of ten.
    in_order, n_in_order = _next_fit(values, capacity)
    return (in_order, n_in_order) if n_in_order < n_best else (best, n_best)


def cu_seqlens_numpy(lengths: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """As :func:`cu_seqlens`, in NumPy."""
    values = _as_lengths(lengths)
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    # A length that is too large by itself is clipped to just too large, as int64 sums could
    # overflow.
    np.cumsum(np.minimum(values, _INT32_MAX + 1), out=offsets[1:])
    negative, over = values < 0, offsets[1:] > _INT32_MAX
    if (negative | over).any():
        i = int((negative | over).argmax())
        if negative[i]:
            raise ValueError(f"lengths[{i}]: expected a length of at least 0, got {values[i]}")
        raise ValueError(
            f"lengths: expected a sum of at most {_INT32_MAX} (int32), passed it at lengths[{i}]"
        )
    return offsets.astype(np.int32)


def _as_lengths(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    try:
        array = np.asarray(lengths)
    except ValueError:
        raise TypeError(f"lengths: expected a vector of integers, got {type(lengths)}") from None
    if array.ndim != 1:
        raise ValueError(f"lengths: expected 1 dimension, got {array.ndim}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {array.dtype}")
    return array.astype(np.int64)


def _best_fit_decreasing(
    lengths: npt.NDArray[np.int64], capacity: int
) -> tuple[npt.NDArray[np.int64], int]:
    bin_of = np.empty(len(lengths), dtype=np.int64)
    n_bins = 0
    open_bins: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        fullest = bisect.bisect_left(open_bins, (length, 0))
        if fullest < len(open_bins):
            room, bin = open_bins.pop(fullest)
        else:
            room, bin = capacity, n_bins
            n_bins += 1
        bisect.insort(open_bins, (room - length, bin))
        bin_of[i] = bin
    return bin_of, n_bins


def _next_fit(lengths: npt.NDArray[np.int64], capacity: int) -> tuple[npt.NDArray[np.int64], int]:
    bin_of = np.empty(len(lengths), dtype=np.int64)
    n_bins = room = 0
    for i, length in enumerate(lengths.tolist()):
        if n_bins == 0 or length > room:
            n_bins, room = n_bins + 1, capacity
        room -= length
        bin_of[i] = n_bins - 1
    return bin_of, n_bins
