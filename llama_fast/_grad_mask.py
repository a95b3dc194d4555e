"""`grad_mask`, an argument of operators: bit i is set where the i-th of their gradients is wanted.

What is not wanted comes back empty. The C++ sources (csrc/) read the bits in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence


def grad_mask(wanted: Sequence[bool]) -> int:
    """The mask for gradients that are wanted or not."""
    return sum(want << i for i, want in enumerate(wanted))


def wanted_gradients(mask: int, count: int) -> list[bool]:
    """Whether each of the first `count` gradients is wanted."""
    return [bool(mask >> i & 1) for i in range(count)]
