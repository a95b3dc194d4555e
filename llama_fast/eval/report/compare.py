"""Two runs on the same questions: differences, their intervals, and which answers changed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from llama_fast.eval.report.bootstrap import (
    RESAMPLES,
    Difference,
    resample_means,
    summarise_resamples,
)
from llama_fast.eval.report.questions import Question, read_questions
from llama_fast.eval.report.results import Run
from llama_fast.eval.report.scores import Score, score_of
from llama_fast.eval.report.suites import metric_of


@dataclass(frozen=True)
class Row:
    """A task in both runs; means over the common questions, in percent if `percent`.

    Attributes:
        task: its name, or what several together are called.
        n: questions in common.
        a, b: means of the runs.
        difference: B - A.
        gained, lost: questions that B answers right and A wrong, and the reverse.
    """

    task: str
    metric: str
    percent: bool
    n: int
    a: float
    b: float
    difference: Difference
    gained: int
    lost: int


@dataclass(frozen=True)
class Comparison:
    """Runs A and B.

    Attributes:
        tasks: those that could be compared.
        overall: the mean over all questions, and the mean over tasks; of tasks in percent, and
            empty if there is but one.
        notices: what was left out, and what differs.
    """

    a: Run
    b: Run
    tasks: tuple[Row, ...]
    overall: tuple[Row, ...]
    notices: tuple[str, ...]


def compare(a: Run, b: Run, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Compare two runs question by question.

    A task's questions are matched by the hash of the document, so runs may have other limits and
    orders; only common questions count. Each task is resampled by itself, the overall means too.

    Args:
        a, b: the runs.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no task can be compared; says why.
    """
    notices: list[str] = []
    common = [task for task in a.tasks if task in b.tasks]
    for name, run, other in (("A", a, b), ("B", b, a)):
        missing = [task for task in run.tasks if task not in other.tasks]
        if missing:
            notices.append(f"only in {name}: {some(missing)}")
    if not common:
        raise ValueError(
            f"runs: expected a task that both have; A has {some(a.tasks)}, B has {some(b.tasks)}"
        )
    rows, means, unscored = [], [], []
    for task in common:
        paired = _pair(a, b, task, notices)
        if paired is None:
            unscored.append(task)
            continue
        row, drawn = _row(task, *paired, resamples, seed)
        rows.append(row)
        means.append(drawn)
    if not rows:
        raise ValueError(f"runs: no task can be compared: {'; '.join(notices)}")
    shares = [at for at, row in enumerate(rows) if row.percent]
    overall = _overall([rows[at] for at in shares], [means[at] for at in shares])
    return Comparison(a, b, tuple(rows), overall, tuple(notices))


def some(names: Sequence[str], most: int = 8) -> str:
    """The first `most` of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _pair(
    a: Run, b: Run, task: str, notices: list[str]
) -> tuple[Score, list[tuple[Question, Question]]] | None:
    """The task's score in A and the questions both answered; None and a notice without any."""
    score = score_of(a.results["results"][task], metric_of(a, task))
    if score is None:
        notices.append(f"{task}: no score")
        return None
    if score.key not in b.results["results"][task]:
        notices.append(f"{task}: A is scored by {score.key}, which B lacks")
        return None
    without = [name for name, run in (("A", a), ("B", b)) if task not in run.files]
    if without:
        notices.append(f"{task}: no samples in {' and '.join(without)}")
        return None
    of_a, of_b = (
        {q.key: q for q in read_questions(run, task, score) if q.score is not None}
        for run in (a, b)
    )
    pairs = [(of_a[key], of_b[key]) for key in of_a if key in of_b]
    if not pairs:
        notices.append(f"{task}: no question in common that has a score of its own")
        return None
    if len(pairs) < max(len(of_a), len(of_b)):
        notices.append(
            f"{task}: {len(of_a):,} questions in A, {len(of_b):,} in B; "
            f"the {len(pairs):,} common ones are compared"
        )
    other = sum(x.prompt_hash != y.prompt_hash for x, y in pairs)
    if other:
        notices.append(f"{task}: the prompts of {other:,} questions differ between the runs")
    return score, pairs


def _row(
    task: str,
    score: Score,
    pairs: Sequence[tuple[Question, Question]],
    resamples: int,
    seed: int,
) -> tuple[Row, npt.NDArray[np.float64]]:
    scale = 100.0 if score.percent else 1.0
    a = scale * np.array([x.score for x, _ in pairs], dtype=np.float64)
    b = scale * np.array([y.score for _, y in pairs], dtype=np.float64)
    # A task's numbers do not depend on which others are compared beside it.
    drawn = resample_means(b - a, resamples, seed=(seed, zlib.crc32(task.encode())))
    gained = sum(not x.is_right and bool(y.is_right) for x, y in pairs)
    lost = sum(bool(x.is_right) and not y.is_right for x, y in pairs)
    difference = summarise_resamples(float((b - a).mean()), drawn)
    row = Row(
        task,
        score.metric,
        score.percent,
        len(pairs),
        float(a.mean()),
        float(b.mean()),
        difference,
        gained,
        lost,
    )
    return row, drawn


def _overall(rows: Sequence[Row], means: Sequence[npt.NDArray[np.float64]]) -> tuple[Row, ...]:
    if len(rows) < 2:
        return ()
    questions = np.array([row.n for row in rows], dtype=np.float64)
    found = []
    for name, weights in (
        ("all questions", questions / questions.sum()),
        ("mean of tasks", np.full(len(rows), 1 / len(rows))),
    ):
        a = float(weights @ [row.a for row in rows])
        b = float(weights @ [row.b for row in rows])
        drawn = weights @ np.stack(means)
        found.append(
            Row(
                name,
                "",
                True,
                sum(row.n for row in rows),
                a,
                b,
                summarise_resamples(b - a, drawn),
                sum(row.gained for row in rows),
                sum(row.lost for row in rows),
            )
        )
    return tuple(found)


def names_of(a: Run, b: Run) -> tuple[str, str]:
    """What to call the runs: the models, or what tells them apart, or the folders."""

    def words(run: Run, keys: Sequence[str]) -> str:
        facts: Mapping[str, Any] = run.metadata
        return " ".join([run.name, *(str(facts[key]) for key in keys if facts.get(key))])

    for keys in ((), ("dtype",), ("dtype", "preset")):
        found = words(a, keys), words(b, keys)
        if found[0] != found[1]:
            return found
    folders = a.path.parent.name, b.path.parent.name
    marks = folders if folders[0] != folders[1] else ("A", "B")
    return f"{a.name} ({marks[0]})", f"{b.name} ({marks[1]})"


def table(comparison: Comparison) -> Table:
    """The comparison for a terminal."""
    name_a, name_b = names_of(comparison.a, comparison.b)
    title = f"A = {name_a}, B = {name_b}; B - A, paired bootstrap"
    found = Table(title=Text(title), title_justify="left")
    found.add_column("task", overflow="fold")
    found.add_column("metric")
    for heading in ("n", "A", "B", "B - A", "95 % interval", "p", "won / lost"):
        found.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.tasks:
        found.add_row(*_cells(row))
    if comparison.overall:
        found.add_section()
        for row in comparison.overall:
            found.add_row(*_cells(row))
    return found


def _cells(row: Row) -> list[str | Text]:
    form = "{:.1f}" if row.percent else "{:.3g}"
    signed = "{:+.1f}" if row.percent else "{:+.3g}"
    d = row.difference
    colour = "" if d.low <= 0 <= d.high else ("green" if d.value > 0 else "red")
    value = signed.format(d.value)
    return [
        Text(row.task),
        Text(row.metric),
        f"{row.n:,}",
        form.format(row.a),
        form.format(row.b),
        Text(value, colour),
        f"{signed.format(d.low)} to {signed.format(d.high)}",
        f"{d.p:.3f}" if d.p >= 0.001 else "< 0.001",
        f"{row.gained} / {row.lost}",
    ]
