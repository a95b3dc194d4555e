"""Limits on the work and memory that reading an untrusted file may take.

Ordinary files stay far below the limits. They are changed by `llama-fast --limit NAME=VALUE` before
the command, or by the environment variable LLAMA_FAST_LIMITS (``line=1G,json=2G``), which child
processes inherit. `docs/limits.md` lists all limits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

VARIABLE = "LLAMA_FAST_LIMITS"

# Name -> (default, what it bounds). Sizes in bytes; names that end in -seconds are CPU time.
LIMITS: dict[str, tuple[int, str]] = {
    "json": (256 << 20, "a JSON file that is read as a whole"),
    "line": (64 << 20, "one line of a .jsonl, .txt or .gz file"),
    "text": (4 << 30, "a .txt.gz file, unpacked"),
    "yaml": (1 << 20, "a training configuration"),
    "template-seconds": (10, "one rendering of a chat template"),
    "template-memory": (1 << 30, "one rendering of a chat template"),
    "template-text": (64 << 20, "the text that a chat template writes"),
    "tokenizer-seconds": (120, "loading a tokenizer.json"),
    "tokenizer-memory": (8 << 30, "loading a tokenizer.json"),
}

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def limit(name: str) -> int:
    """The current value of a limit.

    Raises:
        ValueError: LLAMA_FAST_LIMITS is malformed.
    """
    given = os.environ.get(VARIABLE, "")
    own = _parse(given.split(","), VARIABLE) if given else {}
    return own.get(name, LIMITS[name][0])


def set_limits(given: Sequence[str]) -> None:
    """Set limits, given as ``NAME=VALUE``, for this process and its children.

    Raises:
        ValueError: a limit is unknown, or its value is not a number.
    """
    _parse(given)
    if not given:
        return
    earlier = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = ",".join([earlier, *given] if earlier else given)


def check_variable() -> None:
    """Raise ValueError if LLAMA_FAST_LIMITS is malformed."""
    if given := os.environ.get(VARIABLE, ""):
        _parse(given.split(","), VARIABLE)


def raise_it(name: str) -> str:
    """The part of an error message that says how to raise a limit."""
    return f"--limit {name}=N before the command, or {VARIABLE}={name}=N, raises the limit"


def _parse(given: Sequence[str], argument: str = "limit") -> dict[str, int]:
    limits: dict[str, int] = {}
    for entry in given:
        name, _, value = entry.strip().partition("=")
        match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:iB|B)?", value)
        if name not in LIMITS or match is None or not int(match[1]):
            raise ValueError(
                f"{argument}: expected NAME=VALUE with a NAME of {', '.join(LIMITS)} and a VALUE "
                f"such as 30 or 2G, got {entry!r:.100}"
            )
        limits[name] = int(match[1]) << _UNITS[match[2]]
    return limits
