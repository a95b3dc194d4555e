"""The format in which a program's values reach its tests."""

from __future__ import annotations

import contextlib
import struct
from collections import Counter, OrderedDict, deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_fast.eval.suite.jail.values import MAX_BYTES, MAX_DEPTH, FormatError, decode, encode

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner),
    max_leaves=4,
)
values = st.recursive(
    hashable
    | st.complex_numbers(allow_nan=False)
    | st.dates()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.just(range(1, 9, 2)),
    lambda inner: st.lists(inner) | st.dictionaries(hashable, inner) | st.sets(hashable),
    max_leaves=10,
)


@given(values)
def test_values_come_back_with_their_types(value: object) -> None:
    back = decode(encode(value))
    assert back == value
    assert repr(back) == repr(value) or "{" in repr(value)  # sets have no order


@settings(max_examples=500)
@given(st.binary(max_size=60) | values.map(encode), st.data())
def test_any_bytes_are_a_value_or_refused(data: bytes, draw: st.DataObject) -> None:
    if data:
        place = draw.draw(st.integers(0, len(data) - 1))
        data = data[:place] + bytes([draw.draw(st.integers(0, 255))]) + data[place + 1 :]
    with contextlib.suppress(FormatError):
        decode(data)


class Own(IntEnum):
    ONE = 1


class Text(str):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Own.ONE, int),
        (Text("x"), str),
        (type("Sub", (list,), {})([1]), list),
        (Counter("aab"), Counter),
        (OrderedDict(a=1), OrderedDict),
        (deque([1]), deque),
        (datetime(2024, 1, 2, 3), datetime),
        (date(2024, 1, 2), date),
        (timedelta(1, 2, 3), timedelta),
        (Decimal("1.10"), Decimal),
        (Fraction(1, 3), Fraction),
        (True, bool),
        (int, type),
    ],
)
def test_a_subclass_arrives_as_the_type_below_it(value: object, kind: type) -> None:
    assert type(decode(encode(value))) is kind


def test_limits() -> None:
    deep: list[object] = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    for value in (deep, bytes(MAX_BYTES + 1), [None] * (MAX_BYTES + 1), object()):
        with pytest.raises(FormatError):
            encode(value)
    nested = b"l\1\0\0\0" * 60_000 + b"N"
    many = b"l" + struct.pack("<I", 2**32 - 1)
    arrays = b"x\x0d\0\0\0numpy.ndarray" + encode(["|O8", [1], bytes(8)])
    for data in (nested, many, b"", b"NN", b"h\0\0\0\0", b"?", arrays, b"t\4\0\0\0eval"):
        with pytest.raises(FormatError):
            decode(data)
