"""Changes of a file: bytes, and where it is JSON, values of it."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

# What breaks readers: limits of number types, other types, names that lead elsewhere, depth.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30,
    -(2**63), 0.0, -0.5, 1e308, float("inf"), float("nan"), "", "a", "\0", "../x", "/dev/zero",
    "\ud800", "{{ 1 }}", "a" * 5000, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [0] * 500,
]  # fmt: skip
WORDS = [b"\0", b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x01\0\0\0\0\0\0\0", b"[" * 3000,
         b'{"a":' * 1500, b"9" * 5000, b"1e999", b"NaN", b"\n", b"\x1b]0;x\x07"]  # fmt: skip


def change(data: bytes, rng: random.Random) -> bytes:
    """Another content: of JSON one or more values are changed, of anything else some bytes."""
    if rng.random() < 0.7 and data.count(b"[") + data.count(b"{") < 900:  # what can be written
        head, newline, rest = data.partition(b"\n")
        for text, behind in ((data, b""), (head, newline + rest)):
            try:
                content = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(content, (dict, list)):
                for _ in range(rng.choice((1, 1, 1, 2, 4))):
                    _change_value(content, rng)
                return json.dumps(content).encode() + behind
    return change_bytes(data, rng)


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes are others, more, or fewer."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        # Most of what a reader decides on stands at the beginning.
        most = len(found) if rng.random() < 0.5 else min(len(found), 400)
        at = rng.randrange(most + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            word = rng.choice(WORDS)
            found[at : at + len(word)] = word
        elif kind == 2:
            found[at:at] = rng.choice(WORDS)
        elif kind == 3:
            del found[at : at + rng.choice((1, 4, 8, 100))]
        elif kind == 4:
            del found[at:]
        else:
            begin = rng.randrange(len(found) + 1)
            found[at:at] = found[begin : begin + rng.choice((4, 16, 64))]
    return bytes(found)


def _change_value(content: Any, rng: random.Random) -> None:
    place = content
    for _ in range(20):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            place = inner
            continue
        kind = rng.randrange(8)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[rng.choice(("", "a", "type", "name", *map(str, keys)))] = copy.deepcopy(
                rng.choice(VALUES)
            )
        elif kind == 2:
            place[key] = {"a": inner}
        elif kind == 3:
            place[key] = [copy.deepcopy(inner) for _ in range(rng.choice((1, 2, 100)))]
        elif kind == 4 and isinstance(inner, int):
            place[key] = inner + rng.choice((-1, 1, 1000, 2**32))
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
        return
