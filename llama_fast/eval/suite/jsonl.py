"""Reads benchmark files in JSON Lines whose objects all have the same fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_fast._inside import inside
from llama_fast._reading import read_json_lines

__all__ = ["read_uniform_rows"]


def read_uniform_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a ``.jsonl`` file, all with the same fields of the same types.

    Raises:
        ValueError: a line is not a JSON object, lacks a field of the first line, has an additional
            one, or has another type in a field. The message names the file and the line.
    """
    rows: list[dict[str, Any]] = []
    types: dict[str, type] = {}
    inside(path.parent, path.name, path, links=True)
    for place, row in read_json_lines(path):
        if rows and row.keys() != rows[0].keys():
            odd = sorted(row.keys() ^ rows[0].keys())
            problem = "lacks" if odd[0] in rows[0] else "has the unknown"
            raise ValueError(f"{place}: the object {problem} field {odd[0]!r}")
        for key, value in row.items():
            if value is None:
                continue
            value_type = float if type(value) is int else type(value)
            if types.setdefault(key, value_type) is not value_type:
                expected = "number" if types[key] is float else types[key].__name__
                raise ValueError(
                    f"{place}: field {key!r}: expected {expected}, got {type(value).__name__} "
                    f"{str(value)[:40]!r}"
                )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    return rows
