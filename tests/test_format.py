"""Numbers as people read them."""

import pytest

from llama_fast._format import duration


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
