"""Limits on the number of questions, and the draw of the questions that are asked."""

from __future__ import annotations

import fnmatch
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Fields of a row that say of which kind a question is: in HellaSwag whether its activity occurs in
# training, MMLU's subject, MATH's level and type, TruthfulQA's category, BOLD's and ToxiGen's
# groups, SQuAD's article, QuAC's dialogue.
FIELDS = (
    "split_type", "subject", "level", "type", "category", "subgroup", "groups", "title",
    "dialogue_id", "question_source",
)  # fmt: skip
# Fields whose first letters name the source: `activitynet~v_…`, `wikihow~…` (HellaSwag), and
# `Mercury_…`, the exam (ARC).
_SOURCES = {"source_id": re.compile(r"([A-Za-z]+)~"), "id": re.compile(r"([A-Z][A-Za-z&-]+)_")}


@dataclass(frozen=True)
class Limits:
    """Limits on the number of questions per task.

    Attributes:
        default: limit of tasks that match no pattern; None for all questions.
        patterns: (pattern of task names, limit); the last match applies.
        is_first: whether the first questions are asked; else they are drawn, see :func:`draw`.
        seed: seed of the draw.
    """

    default: int | None = None
    patterns: tuple[tuple[str, int | None], ...] = ()
    is_first: bool = False
    seed: int = 0

    @classmethod
    def parse(cls, text: str | None, *, is_first: bool = False, seed: int = 0) -> Limits:
        """Parse limits such as "100", or "100,hellaswag=2000,mmlu_*=4,piqa=all".

        Raises:
            ValueError: `text` does not have this form.
        """
        default, patterns = None, []
        for part in text.split(",") if text else ():
            name, _, number = part.strip().rpartition("=")
            if number != "all" and not (number.isdigit() and int(number) > 0):
                raise ValueError(
                    f"{'first' if is_first else 'limit'}: expected N or TASK=N, N at least 1 or "
                    f"'all', got {part.strip()!r}"
                )
            limit = None if number == "all" else int(number)
            if name:
                patterns.append((name, limit))
            else:
                default = limit
        return cls(default, tuple(patterns), is_first, seed)

    def of(self, task: str) -> int | None:
        """The limit of a task; None for all its questions."""
        matches = [limit for pattern, limit in self.patterns if fnmatch.fnmatchcase(task, pattern)]
        return matches[-1] if matches else self.default

    def check(self, tasks: Sequence[str]) -> None:
        """Raise ValueError for a pattern that matches no task."""
        name = "first" if self.is_first else "limit"
        for pattern, _ in self.patterns:
            if not fnmatch.filter(tasks, pattern):
                raise ValueError(f"{name}: expected the name of a task or a pattern, got {pattern}")

    def choose(self, task: str, questions: Any) -> Choice | None:
        """The questions of a task to ask; None for all.

        Args:
            task: name of the task, which the draw depends on.
            questions: its questions: rows, or a data set of them.
        """
        limit = self.of(task)
        if limit is None or limit >= len(questions):
            return None
        if self.is_first:
            return Choice("first", None, (), tuple(range(limit)))
        by, strata = strata_of(questions)
        ids = draw(strata, (self.seed, zlib.crc32(task.encode())))[:limit]
        return Choice("drawn", self.seed, by, tuple(sorted(ids)))


@dataclass(frozen=True)
class Choice:
    """Which questions of a task are asked.

    Attributes:
        how: "first" or "drawn".
        seed: seed of the draw; None without one.
        by: fields of the rows over which the questions are spread.
        ids: their indices in the data set, ascending.
    """

    how: str
    seed: int | None
    by: tuple[str, ...]
    ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The choice as results.json holds it."""
        return {"how": self.how, "seed": self.seed, "by": list(self.by), "ids": list(self.ids)}


def strata_of(questions: Any) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The fields that say of which kind a question is, and each question's values of them.

    Args:
        questions: rows, or a data set of them.
    """
    columns = []
    names = []
    for name in (*_SOURCES, *FIELDS):
        values = _column(questions, name)
        if values is None:
            continue
        if name in _SOURCES:
            found = [_SOURCES[name].match(str(value)) for value in values]
            if not all(found):
                continue
            values = [match[1] for match in found if match is not None]
        texts = [str(value) for value in values]
        if 1 < len(set(texts)) < len(texts):
            names.append(name)
            columns.append(texts)
    if not columns:
        return (), [()] * len(questions)
    return tuple(names), list(zip(*columns, strict=True))


def draw(strata: Sequence[tuple[str, ...]], seed: int | Sequence[int]) -> list[int]:
    """All questions in a random order whose every beginning has each stratum's share.

    The j-th question of a stratum of n, in random order, is placed at (j + u) / n with u uniform in
    [0, 1). So a smaller limit asks a part of the questions of a larger one, and the plain mean over
    the questions is that over the benchmark, without weights.

    Args:
        strata: each question's stratum.
        seed: seed of the draw.
    """
    generator = np.random.default_rng(seed)
    members: dict[tuple[str, ...], list[int]] = {}
    for at, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(at)
    place = np.empty(len(strata))
    for _, of_stratum in sorted(members.items()):
        shuffled = generator.permutation(of_stratum)
        place[shuffled] = (np.arange(len(shuffled)) + generator.random()) / len(shuffled)
    return [int(at) for at in np.argsort(place, kind="stable")]


def ids_of(results: Mapping[str, Any], task: str) -> list[int] | None:
    """Indices of the questions of a task that a run asked; None if it is not known.

    Args:
        results: the content of results.json. Runs without a record asked the first questions.
        task: the task.
    """
    recorded = (results.get("drawn") or {}).get(task)
    if isinstance(recorded, Mapping) and isinstance(recorded.get("ids"), list):
        return list(recorded["ids"])
    asked = (results.get("n-samples") or {}).get(task)
    if not isinstance(asked, Mapping) or "effective" not in asked:
        return None
    return list(range(int(asked["effective"])))


def _column(questions: Any, name: str) -> Iterable[Any] | None:
    """The values of a field; None if there are rows without it."""
    columns = getattr(questions, "column_names", None)
    if columns is not None:
        return list(questions[name]) if name in columns else None
    rows = list(questions)
    if not all(isinstance(row, Mapping) and name in row for row in rows):
        return None
    return [row[name] for row in rows]
