"""Bits per byte without a neural network: a compressor, and n-gram counts."""

from __future__ import annotations

import lzma

import numpy as np
import numpy.typing as npt

MAX_ORDER = 8  # longest n-gram in bytes, as eight make a 64-bit key

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


def xz(train: bytes, valid: bytes) -> float:
    """Bits per byte that xz -9e takes for `valid` after `train`."""

    def size(text: bytes) -> int:
        return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))

    return 8 * (size(train + valid) - size(train)) / len(valid)


def ngrams(train: bytes, valid: bytes) -> list[float]:
    """Bits per byte of `valid` under interpolated Kneser-Ney models of order 1 to `MAX_ORDER`.

    The order is the number of bytes in an n-gram, including the predicted one. Each order has its
    own discount, n1 / (n1 + 2 n2) of the numbers of n-grams counted once and twice (Chen & Goodman
    1999, "An empirical study of smoothing techniques for language modeling", section 2.7). Lower
    orders count the different bytes before an n-gram instead of the n-gram itself. A byte that was
    never seen gets the rest of the mass, spread over all 256.
    """
    return [_order(train, valid, order) for order in range(1, MAX_ORDER + 1)]


def _order(train: bytes, valid: bytes, order: int) -> float:
    # The first bytes of `valid` are predicted from the last of `train`.
    tail = train[-(MAX_ORDER - 1) :]
    probability: Floats = np.full(len(valid), 1 / 256)
    for length in range(1, order + 1):
        if length == order:
            seen, counts = np.unique(_keys(train, length), return_counts=True)
        else:  # distinct (length + 1)-grams, without their first byte
            longer = np.unique(_keys(train, length + 1))
            mask = np.uint64((1 << 8 * length) - 1)
            seen, counts = np.unique(longer & mask, return_counts=True)
        wanted = _keys(tail[len(tail) - (length - 1) :] + valid, length)
        probability = _interpolated(seen, counts, wanted, probability)
    return float(-np.log2(probability).mean())


def _keys(text: bytes, length: int) -> Keys:
    """Every substring of `length` bytes, as a number whose lowest byte is the last one."""
    values = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)
    count = len(values) - length + 1
    keys = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        keys = keys << np.uint64(8) | values[offset : offset + count]
    return keys


def _interpolated(seen: Keys, counts: npt.NDArray[np.int64], wanted: Keys, lower: Floats) -> Floats:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once and twice else 0.5
    contexts, first = np.unique(seen >> np.uint64(8), return_index=True)
    totals = np.add.reduceat(counts, first)
    kinds = np.diff(np.append(first, len(seen)))  # different bytes after each context
    found = _lookup(seen, counts.astype(np.float64), wanted)
    context = wanted >> np.uint64(8)
    total = _lookup(contexts, totals.astype(np.float64), context)
    left = discount * _lookup(contexts, kinds.astype(np.float64), context)
    known = total > 0
    safe = np.where(known, total, 1)
    mixed = (np.maximum(found - discount, 0) + left * lower) / safe
    return np.where(known, mixed, lower)


def _lookup(keys: Keys, values: Floats, wanted: Keys) -> Floats:
    """The value of each wanted key, 0 for missing keys."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)
