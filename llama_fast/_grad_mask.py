"""`grad_mask`, an argument of operators: bit i is set if their i-th gradient is wanted.

Gradients that are not wanted are returned as empty tensors. The C++ sources (csrc/) read the bits
in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence


def grad_mask(wanted: Sequence[bool]) -> int:
    """The mask from one flag per gradient, whether it is wanted."""
    return sum(want << i for i, want in enumerate(wanted))


def wanted_gradients(mask: int, count: int) -> list[bool]:
    """Whether each of the first `count` gradients is wanted."""
    return [bool(mask >> i & 1) for i in range(count)]
