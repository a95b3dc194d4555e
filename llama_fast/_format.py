"""Formats numbers for people."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

__all__ = ["counted", "duration", "fixed", "times"]

_PLURALS = {"canary": "canaries", "micro-batch": "micro-batches"}  # the irregular ones


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless the number is 1: ``2 tokens``."""
    return f"{number:,} {noun if number == 1 else _PLURALS.get(noun, noun + 's')}"


def fixed(value: float, digits: int) -> str:
    """Format a finite number with `digits` decimals, as JavaScript's ``toFixed`` does.

    A number halfway between two others is rounded away from zero, so that 21.25 is 21.3 in the
    terminal and on a page. Python's formats round it to the even digit.
    """
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def duration(seconds: float, *, decimals: bool = False) -> str:
    """Format a duration in its two largest units: ``42 s``, ``3 min 05 s``, ``2 h 07 min``.

    Args:
        seconds: the duration in seconds.
        decimals: whether to show durations below a minute with one decimal: ``4.2 s``, ``0.3 ms``.
    """
    if decimals and seconds < 59.95:
        return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part:02} {small}"
    return f"{whole} s"


def times(ratio: float | None) -> str:
    """Format a ratio with at least two digits: ``1.05×``, ``2.7×``, ``24×``; a dash for None.

    Below 2 it has two decimals, because there a tenth is the whole difference.
    """
    if ratio is None:
        return "–"
    return f"{fixed(ratio, 2 if ratio < 1.995 else 1 if ratio < 9.95 else 0)}×"
