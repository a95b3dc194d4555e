"""A serialisation format with limits, for processes that do not trust each other.

Decoded values have built-in types or types of the standard library and NumPy, whose comparisons and
methods the sender cannot change; a subclass arrives as its base type. Other objects are "exported":
the owner keeps them under a number, and the other process gets a reference with that number.
"""

from __future__ import annotations

import builtins
import importlib
import re
import struct
from collections.abc import Callable
from typing import Any

from .frames import FormatError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "FormatError", "decode", "encode"]

MAX_BYTES = 16 << 20  # of one message
MAX_DEPTH = 100  # nesting depth of containers

Export = Callable[[Any], int]
Import = Callable[[int], Any]


def _no_export(value: Any) -> int:
    raise FormatError(f"a {type(value).__name__} is not data")


def _no_import(number: int) -> Any:
    raise FormatError("only data was expected")


# Types of the standard library and NumPy: conversion to basic data, and back.
_Parts = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]
_LIBRARY_TYPES: dict[tuple[str, str], _Parts] = {
    ("builtins", "range"): (lambda v: [v.start, v.stop, v.step], lambda t, d: t(*_integers(d))),
    ("builtins", "bytearray"): (bytes, lambda t, d: t(_expect(d, bytes))),
    ("builtins", "dict_keys"): (list, lambda t, d: dict.fromkeys(d).keys()),
    ("collections", "Counter"): (dict, lambda t, d: t(_expect(d, dict))),
    ("collections", "OrderedDict"): (lambda v: list(v.items()), lambda t, d: t(d)),
    ("collections", "deque"): (list, lambda t, d: t(_expect(d, list))),
    ("decimal", "Decimal"): (str, lambda t, d: t(_expect(d, str))),
    ("fractions", "Fraction"): (
        lambda v: [v.numerator, v.denominator],
        lambda t, d: t(*_integers(d)),
    ),
    ("datetime", "date"): (lambda v: v.toordinal(), lambda t, d: t.fromordinal(d)),
    ("datetime", "datetime"): (lambda v: v.isoformat(), lambda t, d: t.fromisoformat(d)),
    ("datetime", "time"): (lambda v: v.isoformat(), lambda t, d: t.fromisoformat(d)),
    ("datetime", "timedelta"): (
        lambda v: [v.days, v.seconds, v.microseconds],
        lambda t, d: t(*_integers(d)),
    ),
    ("numpy", "ndarray"): (
        lambda v: [v.dtype.str, list(v.shape), v.tobytes()],
        lambda t, d: _array(d[0], d[2]).reshape(d[1]),
    ),
    ("numpy", "generic"): (lambda v: [v.dtype.str, v.tobytes()], lambda t, d: _array(*d)[0]),
}


def _expect(value: Any, cls: type) -> Any:
    if type(value) is not cls:
        raise FormatError(f"expected {cls.__name__}, got {type(value).__name__}")
    return value


def _integers(values: list[Any]) -> list[int]:
    return [_expect(value, int) for value in _expect(values, list)]


def _array(dtype: str, data: bytes) -> Any:
    if not re.fullmatch(r"[<>|=][biufc]\d{1,2}", dtype):  # numbers only, no objects
        raise FormatError("an array of other things than numbers")
    return importlib.import_module("numpy").frombuffer(data, dtype).copy()


def encode(value: Any, export: Export = _no_export) -> bytes:
    """The value as bytes; ``export`` returns the number of an object that is not data.

    Raises:
        FormatError: the value is too large or too deep, or neither data nor exportable.
    """
    out = bytearray()
    _encode(value, out, export, 0)
    return bytes(out)


def _encode(value: Any, out: bytearray, export: Export, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FormatError(f"a value more than {MAX_DEPTH} levels deep")
    cls = _base_type(type(value))
    if value is None or value is True or value is False:
        out += b"N" if value is None else b"T" if value else b"F"
    elif cls is int:
        number = int.__index__(value)
        _put(out, b"i", number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True))
    elif cls is float:
        out += b"f" + struct.pack("<d", float.__pos__(value))
    elif cls is complex:
        out += b"c" + struct.pack("<dd", value.real, value.imag)
    elif cls is str:
        _put(out, b"s", str.encode(value, "utf-8", "surrogatepass"))
    elif cls is bytes:
        _put(out, b"b", value)
    elif cls in _TAGS:
        pairs = dict.items(value) if cls is dict else None
        items = list(value) if pairs is None else [item for pair in pairs for item in pair]
        if len(items) > MAX_BYTES:
            raise FormatError(f"a value of more than {MAX_BYTES >> 20} MiB")
        out += _TAGS[cls] + struct.pack("<I", len(items))
        for item in items:
            _encode(item, out, export, depth + 1)
    elif cls is not None:
        _put(out, b"x", ".".join(cls).encode())
        _encode(_LIBRARY_TYPES[cls][0](value), out, export, depth + 1)
    elif id(value) in _TYPES:
        _put(out, b"t", _TYPES[id(value)].encode())
    else:
        out += b"h" + struct.pack("<I", export(value))
    if len(out) > MAX_BYTES:
        raise FormatError(f"a value of more than {MAX_BYTES >> 20} MiB")


_CONTAINERS = {b"l": list, b"u": tuple, b"e": set, b"z": frozenset, b"d": dict}
_TAGS = {cls: tag for tag, cls in _CONTAINERS.items()}
_TYPES = {id(cls): name for name, cls in vars(builtins).items() if isinstance(cls, type)}


def _put(out: bytearray, tag: bytes, data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise FormatError(f"a value of more than {MAX_BYTES >> 20} MiB")
    out += tag + struct.pack("<I", len(data)) + data


def _base_type(cls: type) -> Any:
    """The supported type, or entry of the table, that ``cls`` is or inherits from; else None."""
    for base in cls.__mro__:
        if base in _TAGS or base in (int, float, complex, str, bytes):
            return base
        if (name := (base.__module__, base.__name__)) in _LIBRARY_TYPES:
            return name
    return None


def decode(data: bytes, imported: Import = _no_import) -> Any:
    """The value of the bytes; ``imported`` returns the reference for a number.

    Raises:
        FormatError: the bytes are not exactly one value.
    """
    reader = _Reader(data, imported)
    try:
        value = reader.value(0)
    except FormatError:
        raise
    except Exception as error:  # such as a date in the year 0 or a list as a key
        raise FormatError(f"{type(error).__name__}: {error}") from None
    if reader.at != len(data):
        raise FormatError("bytes after the value")
    return value


class _Reader:
    def __init__(self, data: bytes, imported: Import) -> None:
        self.data, self.imported, self.at = data, imported, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise FormatError("a value is cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def items(self, count: int, depth: int) -> list[Any]:
        if count > len(self.data) - self.at:  # each takes at least one byte
            raise FormatError("a value is cut off")
        return [self.value(depth + 1) for _ in range(count)]

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise FormatError(f"a value more than {MAX_DEPTH} levels deep")
        tag = self.take(1)
        if tag in (b"N", b"T", b"F"):
            return {b"N": None, b"T": True, b"F": False}[tag]
        if tag == b"i":
            return int.from_bytes(self.take(self.number()), "little", signed=True)
        if tag == b"f":
            return struct.unpack("<d", self.take(8))[0]
        if tag == b"c":
            return complex(*struct.unpack("<dd", self.take(16)))
        if tag == b"s":
            return self.take(self.number()).decode("utf-8", "surrogatepass")
        if tag == b"b":
            return self.take(self.number())
        if tag == b"d":
            flat = self.items(self.number(), depth)
            return dict(zip(flat[::2], flat[1::2], strict=True))
        if tag in _CONTAINERS:
            return _CONTAINERS[tag](self.items(self.number(), depth))
        if tag == b"t":
            cls = getattr(builtins, self.take(self.number()).decode(), None)
            return _expect(cls, type)
        if tag == b"x":
            module, _, name = self.take(self.number()).decode().partition(".")
            parts = _LIBRARY_TYPES[module, name]
            cls = getattr(importlib.import_module(module), name, None)
            return parts[1](cls, self.value(depth + 1))
        if tag == b"h":
            return self.imported(self.number())
        raise FormatError(f"no value begins with {tag!r}")
