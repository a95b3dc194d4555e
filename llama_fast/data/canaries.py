"""Canaries: random secrets inserted into a corpus, to measure how well a model memorises them.

Carlini et al. 2019, "The Secret Sharer" (arXiv:1802.08232): a canary is a format string filled with
a value drawn uniformly from a randomness space R; here R is all numbers of a given number of
digits. `llama-fast eval canary` measures the memorisation.

    FOLDER/NAME             the corpus, with one more line per repeat of a canary
    FOLDER/canaries.json    format, digits and seed; digits and repeats of each canary
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama_fast._reading import read_json, read_lines
from llama_fast._write import partial_name
from llama_fast.data.rows import DataError

FILE = "canaries.json"
PLACEHOLDER = "{digits}"
MAX_DIGITS = 18  # 10^18 numbers still fit int64


@dataclass(frozen=True)
class Canary:
    """A secret in a corpus.

    Attributes:
        digits: the secret, a string of digits.
        repeats: number of times that it is in the corpus.
    """

    digits: str
    repeats: int


@dataclass(frozen=True)
class Canaries:
    """The canaries of a corpus.

    Attributes:
        format: a line of text that contains `PLACEHOLDER` once.
        digits: number of digits of a secret; the randomness space has 10^digits numbers.
        seed: seed with which they were drawn.
        canaries: the canaries, with different secrets.

    Raises:
        ValueError: `format` lacks the placeholder, `digits` is out of range, or a canary has
            another number of digits.
    """

    format: str
    digits: int
    seed: int
    canaries: tuple[Canary, ...]

    def __post_init__(self) -> None:
        if self.format.count(PLACEHOLDER) != 1 or "\n" in self.format:
            raise ValueError(
                f"format: expected one line with {PLACEHOLDER} once, got {self.format!r}"
            )
        if not 1 <= self.digits <= MAX_DIGITS:
            raise ValueError(f"digits: expected 1 to {MAX_DIGITS}, got {self.digits}")
        for canary in self.canaries:
            if len(canary.digits) != self.digits or not canary.digits.isdecimal():
                raise ValueError(
                    f"canaries: expected {self.digits} digits each, got {canary.digits!r}"
                )

    @property
    def space(self) -> int:
        """Size of the randomness space, |R|."""
        return 10**self.digits

    def text(self, number: int) -> str:
        """The format filled with a number of the randomness space."""
        return self.format.replace(PLACEHOLDER, f"{number:0{self.digits}d}")


def draw(format: str, digits: int, repeats: Sequence[int], seed: int) -> Canaries:
    """Draw canaries with different random digits, one for each entry of `repeats`.

    Raises:
        ValueError: `repeats` is empty or longer than the randomness space, or one of its entries
            or the seed is negative.
    """
    empty = Canaries(format, digits, seed, ())
    if not 1 <= len(repeats) <= empty.space or min(repeats) < 0:
        raise ValueError(
            f"repeats: expected 1 to {empty.space} numbers >= 0, got {list(repeats)[:20]}"
        )
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    generator = np.random.Generator(np.random.PCG64(seed))
    numbers: dict[int, None] = {}  # a set that keeps the order of insertion
    while len(numbers) < len(repeats):
        numbers[int(generator.integers(empty.space))] = None
    canaries = (Canary(f"{n:0{digits}d}", k) for n, k in zip(numbers, repeats, strict=True))
    return dataclasses.replace(empty, canaries=tuple(canaries))


def plant(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str,
    digits: int,
    repeats: Sequence[int],
    key: str = "text",
    seed: int = 0,
) -> Canaries:
    """Copy a corpus to a new folder and insert canaries between its lines, at random places.

    Args:
        source: a ``.txt`` or ``.jsonl`` file, also as ``.gz``; the copy is not compressed.
        out: the folder to create.
        format, digits, repeats, seed: see :func:`draw`.
        key: field of a JSON row that holds the canary's text.

    Raises:
        FileNotFoundError: there is no such file.
        FileExistsError: `out` exists.
        DataError: the file has another suffix, or is empty.
    """
    path, folder = Path(source), Path(out)
    planted = draw(format, digits, repeats, seed)
    name = path.name.removesuffix(".gz")
    if not path.is_file():
        raise FileNotFoundError(f"source: no such file: {path}")
    if not name.endswith((".txt", ".jsonl")):
        raise DataError(f"{path}: expected .txt or .jsonl (or .txt.gz, .jsonl.gz)")
    if folder.exists():
        raise FileExistsError(f"out: exists already: {folder}")
    lines = sum(1 for _ in read_lines(path, DataError))
    if not lines:
        raise DataError(f"{path}: expected at least one line, got none")
    texts = [
        planted.text(int(canary.digits))
        for canary in planted.canaries
        for _ in range(canary.repeats)
    ]
    if name.endswith(".jsonl"):
        texts = [json.dumps({key: text}) for text in texts]
    # A separate generator, so that the places do not depend on the digits.
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    before: dict[int, list[str]] = {}
    for text, place in zip(texts, generator.integers(lines, size=len(texts)).tolist(), strict=True):
        before.setdefault(place, []).append(text)
    partial = partial_name(folder)
    partial.mkdir(parents=True)
    try:
        with (partial / name).open("wb") as copy:
            for number, line in enumerate(read_lines(path, DataError)):
                copy.writelines(f"{text}\n".encode() for text in before.get(number, ()))
                copy.write(line)
        content = json.dumps(dataclasses.asdict(planted), indent=1)
        (partial / FILE).write_text(content, encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return planted


def read_canaries(path: str | os.PathLike[str]) -> Canaries:
    """Read a ``canaries.json``, given by its path or its folder.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file has other content.
    """
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"canaries: no such file: {file}")
    try:
        content = read_json(file, error=DataError)
        canaries = tuple(Canary(**entry) for entry in content.pop("canaries"))
        return Canaries(canaries=canaries, **content)
    except DataError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not a list of canaries: {error!r}") from None


def candidates(planted: Canaries, sample: int | None, seed: int) -> Iterator[str]:
    """Yield the text of every number of the randomness space, or of `sample` random ones."""
    if sample is None:
        yield from map(planted.text, range(planted.space))
        return
    generator = np.random.Generator(np.random.PCG64([seed, 2]))
    yield from map(planted.text, generator.integers(planted.space, size=sample).tolist())
