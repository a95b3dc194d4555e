"""Reads files of benchmark questions, and names the line that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_fast._inside import inside
from llama_fast._reading import lines_of, parse_json
from llama_fast._reading import read_json as read_strangers_json

__all__ = ["read_json", "read_jsonl"]


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; empty lines are skipped.

    Raises:
        ValueError: a line is no JSON object, lacks a field that the first line has, has one more,
            or holds another type in it. The message names file and line.
    """
    rows: list[dict[str, Any]] = []
    kinds: dict[str, type] = {}
    inside(path.parent, path.name, path, links=True)
    with open(path, "rb") as file:
        for number, line in enumerate(lines_of(file, path), start=1):
            if not line.strip():
                continue
            row = parse_json(line.rstrip(), f"{path}:{number}", kind=dict)
            if rows and row.keys() != rows[0].keys():
                odd = sorted(row.keys() ^ rows[0].keys())
                problem = "lacks" if odd[0] in rows[0] else "has the unknown"
                raise ValueError(f"{path}:{number}: the object {problem} field {odd[0]!r}")
            for key, value in row.items():
                if value is None:
                    continue
                kind = float if type(value) is int else type(value)
                if kinds.setdefault(key, kind) is not kind:
                    expected = "number" if kinds[key] is float else kinds[key].__name__
                    raise ValueError(
                        f"{path}:{number}: field {key!r}: expected {expected}, got {_kind(value)}"
                    )
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is no JSON; the message names file and line.
    """
    return read_strangers_json(path, kind=None)


def _kind(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"
