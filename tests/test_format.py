"""Numbers as people read them."""

import pytest

from llama_fast._format import counted, duration, fixed, times


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "token", "0 tokens"),
        (1, "token", "1 token"),
        (1234, "token", "1,234 tokens"),
        (1, "canary", "1 canary"),
        (2, "canary", "2 canaries"),
    ],
)
def test_numbers_of_things(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7625, "2 h 07 min"),
        (86400 * 3 + 4 * 3600, "3 d 04 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0003, "0.3 ms"), (4.23, "4.2 s"), (59.96, "1 min 00 s"), (185, "3 min 05 s")],
)
def test_duration_with_decimals(seconds: float, text: str) -> None:
    assert duration(seconds, decimals=True) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (21.25, 1, "21.3"),  # halfway in binary too: Python's format says 21.2
        (0.125, 2, "0.13"),
        (-21.25, 1, "-21.3"),
        (2.675, 2, "2.67"),  # its binary value is below the half
        (99.96, 1, "100.0"),
        (7, 1, "7.0"),
    ],
)
def test_fixed_is_that_of_javascript(value: float, digits: int, text: str) -> None:
    assert fixed(value, digits) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (0.83, "0.83×"),
        (1.05, "1.05×"),
        (1.994, "1.99×"),
        (1.996, "2.0×"),
        (2.98, "3.0×"),
        (9.94, "9.9×"),
        (9.96, "10×"),
        (23.7, "24×"),
        (None, "–"),
    ],
)
def test_ratios_have_two_digits_at_least(ratio: float | None, text: str) -> None:
    assert times(ratio) == text
