"""Reads the text of benchmark questions from JSON Lines, to search for it in training data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_fast._reading import read_json_lines
from llama_fast.data.rows import DataError
from llama_fast.data.verbalise import verbalise


@dataclass(frozen=True)
class QuestionText:
    """The text of one row of a benchmark.

    Attributes:
        file: the file that contains the row.
        index: index of the row in the file, from 0.
        text: the question as the suite asks it, with the right answer; or fields of the row, one
            per line.
        also: the same in other words, of which the training data may have either.
        benchmark: the benchmark as which the row was recognised; None if the text is fields.
    """

    file: Path
    index: int
    text: str
    benchmark: str | None = None
    also: tuple[str, ...] = ()


def read_questions(
    source: str | os.PathLike[str], fields: Sequence[str] | None = None
) -> Iterator[QuestionText]:
    """Yield the rows of a ``.jsonl`` file, or of all such files in a folder, alphabetically.

    Args:
        source: a ``.jsonl`` or ``.jsonl.gz`` file, or a folder.
        fields: the fields that make up the text, in this order. None: the text of a row of a
            benchmark in :mod:`~.verbalise` is the question as the suite asks it, with the right
            answer; that of other rows is all fields but identifiers (``id`` and names that end in
            ``_id``). Strings in lists and objects are included, numbers are not.

    Raises:
        FileNotFoundError: there is no such file or folder.
        DataError: a file is not JSON Lines, or a row lacks one of `fields`.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"against: no such file or folder: {path}")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.jsonl*") if p.is_file())
    if not files or not all(file.name.endswith((".jsonl", ".jsonl.gz")) for file in files):
        raise DataError(f"{path}: expected .jsonl or .jsonl.gz, found none")
    for file in files:
        for index, (place, row) in enumerate(read_json_lines(file, error=DataError)):
            if fields is None:
                if known := verbalise(row):
                    benchmark, (text, *also) = known
                    yield QuestionText(file, index, text, benchmark, tuple(also))
                    continue
                names = [n for n in row if n != "id" and not n.endswith("_id")]
            else:
                names = list(fields)
                if missing := [name for name in names if name not in row]:
                    raise DataError(
                        f"{place}: expected a field {missing[0]!r}, got {', '.join(row)}"
                    )
            text = "\n".join(text for name in names for text in _texts(row[name]))
            yield QuestionText(file, index, text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
