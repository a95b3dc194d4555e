"""Compares two runs on the same questions: differences, intervals and changed answers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.measure import measure_renderables
from rich.table import Table
from rich.text import Text

from llama_fast._format import counted
from llama_fast.eval.report.conditions import differing_conditions
from llama_fast.eval.report.names import Name
from llama_fast.eval.report.paired import FLIPS, Difference, Sample, difference
from llama_fast.eval.report.questions import Question, read_questions
from llama_fast.eval.report.results import Run
from llama_fast.eval.report.scores import Score, score_of
from llama_fast.eval.report.suites import metric_of


@dataclass(frozen=True)
class TaskComparison:
    """A task in both runs; means over the common questions, in percent if `percent`.

    Attributes:
        task: name of the task, or of an average over tasks.
        n: number of common questions.
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
    """The comparison of runs A and B.

    Attributes:
        a, b: the runs.
        tasks: the tasks that could be compared.
        overall: the mean over all questions and the mean over tasks, for tasks in percent; empty
            for a single task.
        notices: what was left out, and prompts that differ.
        conditions: the conditions that differ, in one line; None if none does.
    """

    a: Run
    b: Run
    tasks: tuple[TaskComparison, ...]
    overall: tuple[TaskComparison, ...]
    notices: tuple[str, ...]
    conditions: str | None


def compare(a: Run, b: Run, *, flips: int = FLIPS, seed: int = 0) -> Comparison:
    """Compare two runs question by question.

    Questions are matched by the hash of the document, so the runs may differ in limits and order;
    only common questions count. Intervals and p-values are those of :mod:`paired`; questions that
    share a passage count as one cluster.

    Args:
        a, b: the runs.
        flips: number of assignments of signs that are drawn where the test is not exact.
        seed: seed of the draw.

    Raises:
        ValueError: no task can be compared; the message says why.
    """
    notices: list[str] = []
    common = [task for task in a.tasks if task in b.tasks]
    for name, run, other in (("A", a, b), ("B", b, a)):
        missing = [task for task in run.tasks if task not in other.tasks]
        if missing:
            notices.append(f"only in {name}: {join_names(missing)}")
    if not common:
        raise ValueError(
            f"runs: expected a task that both have; A has {join_names(a.tasks)}, "
            f"B has {join_names(b.tasks)}"
        )
    rows, samples = [], []
    for task in common:
        paired = _pair(a, b, task, notices)
        if paired is None:
            continue
        row, sample = _row(task, *paired, flips, seed)
        rows.append(row)
        samples.append(sample)
    if not rows:
        raise ValueError(f"runs: no task can be compared: {'; '.join(notices)}")
    in_percent = [at for at, row in enumerate(rows) if row.percent]
    overall = _overall(
        [rows[at] for at in in_percent], [samples[at] for at in in_percent], flips, seed
    )
    return Comparison(a, b, tuple(rows), overall, tuple(notices), differing_conditions(a, b))


def join_names(names: Sequence[str], limit: int = 8) -> str:
    """The first `limit` names, joined, and the number of further ones."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def _pair(
    a: Run, b: Run, task: str, notices: list[str]
) -> tuple[Score, list[tuple[Question, Question]]] | None:
    """The task's score in A and the questions that both runs answered; else None and a notice."""
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
    by_key_a, by_key_b = (
        {q.key: q for q in read_questions(run, task, score) if q.score is not None}
        for run in (a, b)
    )
    pairs = [(by_key_a[key], by_key_b[key]) for key in by_key_a if key in by_key_b]
    if not pairs:
        notices.append(f"{task}: no question in common that has a score of its own")
        return None
    if len(pairs) < max(len(by_key_a), len(by_key_b)):
        notices.append(
            f"{task}: {counted(len(by_key_a), 'question')} in A, {len(by_key_b):,} in B; "
            f"the {len(pairs):,} common ones are compared"
        )
    other = sum(x.prompt_hash != y.prompt_hash for x, y in pairs)
    if other:
        notices.append(
            f"{task}: the prompts of {counted(other, 'question')} differ between the runs"
        )
    return score, pairs


def _row(
    task: str,
    score: Score,
    pairs: Sequence[tuple[Question, Question]],
    flips: int,
    seed: int,
) -> tuple[TaskComparison, Sample]:
    a = [float(x.score or 0.0) for x, _ in pairs]
    b = [float(y.score or 0.0) for _, y in pairs]
    # Questions without a cluster are alone.
    clusters = [x.key if x.cluster is None else x.cluster for x, _ in pairs]
    sample = Sample.of(a, b, clusters)
    # Seeded per task, so that the numbers do not depend on the other tasks.
    found = difference([sample], [1.0], flips=flips, seed=(seed, zlib.crc32(task.encode())))
    scale = 100.0 if score.percent else 1.0
    row = TaskComparison(
        task,
        score.metric,
        score.percent,
        len(pairs),
        scale * sum(a) / len(a),
        scale * sum(b) / len(b),
        _scaled(found, scale),
        sum(not x.is_right and bool(y.is_right) for x, y in pairs),
        sum(bool(x.is_right) and not y.is_right for x, y in pairs),
    )
    return row, sample


def _scaled(found: Difference, scale: float) -> Difference:
    low = None if found.low is None else scale * found.low
    high = None if found.high is None else scale * found.high
    return Difference(scale * found.value, low, high, found.p)


def _overall(
    rows: Sequence[TaskComparison], samples: Sequence[Sample], flips: int, seed: int
) -> tuple[TaskComparison, ...]:
    if len(rows) < 2:
        return ()
    questions = sum(row.n for row in rows)
    result = []
    for name, weights in (
        ("all questions", [row.n / questions for row in rows]),
        ("mean of tasks", [1 / len(rows)] * len(rows)),
    ):
        result.append(
            TaskComparison(
                name,
                "",
                True,
                questions,
                sum(weight * row.a for weight, row in zip(weights, rows, strict=True)),
                sum(weight * row.b for weight, row in zip(weights, rows, strict=True)),
                _scaled(difference(samples, weights, flips=flips, seed=seed), 100.0),
                sum(row.gained for row in rows),
                sum(row.lost for row in rows),
            )
        )
    return tuple(result)


def names_of(a: Run, b: Run) -> tuple[str, str]:
    """Labels for the runs: the models' names, with what distinguishes them if these are equal."""

    def label(run: Run, keys: Sequence[str]) -> str:
        facts: Mapping[str, Any] = run.metadata
        return " ".join([run.name, *(str(facts[key]) for key in keys if facts.get(key))])

    for keys in ((), ("dtype",), ("dtype", "preset")):
        result = label(a, keys), label(b, keys)
        if result[0] != result[1]:
            return result
    folders = a.path.parent.name, b.path.parent.name
    labels = folders if folders[0] != folders[1] else ("A", "B")
    return f"{a.name} ({labels[0]})", f"{b.name} ({labels[1]})"


def table(comparison: Comparison, width: int | None = None) -> Table:
    """The comparison as a table for the terminal.

    Args:
        comparison: the comparison.
        width: columns of the terminal; in a narrow one, cells have two lines.
    """
    wide = _wide(comparison)
    if width is None or measure_renderables(_MEASURE, _MEASURE.options, [wide]).maximum <= width:
        return wide
    return _narrow(comparison)


# Measures in as many columns as a table may want.
_MEASURE = Console(width=1_000)


def _wide(comparison: Comparison) -> Table:
    result = _empty(comparison)
    result.add_column("task", overflow="fold")
    result.add_column("metric")
    for heading in ("n", "A", "B", "B - A", "95 % interval", "p", "won / lost"):
        result.add_column(heading, justify="right", no_wrap=True)
    _fill(result, comparison, _cells)
    return result


def _narrow(comparison: Comparison) -> Table:
    result = _empty(comparison)
    result.add_column("task\nn, won / lost", overflow="fold")
    result.add_column("A\nB", justify="right", no_wrap=True)
    result.add_column("B - A\n95 % interval", justify="right", no_wrap=True)
    result.add_column("p\n", justify="right", no_wrap=True)

    def cells(row: TaskComparison) -> list[str | Text | Name]:
        n, a, b, difference, interval, p, won = _numbers(row)
        return [
            Name(row.task, f"{n}, {won}"),
            f"{a}\n{b}",
            Text("\n").join([difference, Text(interval)]),
            p,
        ]

    _fill(result, comparison, cells)
    return result


def _empty(comparison: Comparison) -> Table:
    name_a, name_b = names_of(comparison.a, comparison.b)
    title = f"A = {name_a}, B = {name_b}; B - A on the same questions"
    return Table(title=Text(title), title_justify="left")


def _fill(
    table: Table, comparison: Comparison, cells: Callable[[TaskComparison], list[str | Text | Name]]
) -> None:
    for row in comparison.tasks:
        table.add_row(*cells(row))
    if comparison.overall:
        table.add_section()
        for row in comparison.overall:
            table.add_row(*cells(row))


def _cells(row: TaskComparison) -> list[str | Text | Name]:
    return [Name(row.task), Name(row.metric), *_numbers(row)]


def _numbers(row: TaskComparison) -> tuple[str, str, str, Text, str, str, str]:
    """The cells n, A, B, B - A, interval, p, and won / lost."""
    form = "{:.1f}" if row.percent else "{:.3g}"
    signed = "{:+.1f}" if row.percent else "{:+.3g}"
    d = row.difference
    is_sure = d.low is not None and d.high is not None and not d.low <= 0 <= d.high
    colour = ("green" if d.value > 0 else "red") if is_sure else ""
    interval = "–"
    if d.low is not None and d.high is not None:
        interval = f"{signed.format(d.low)} to {signed.format(d.high)}"
    value = signed.format(d.value)
    return (
        f"{row.n:,}",
        form.format(row.a),
        form.format(row.b),
        Text(value, colour),
        interval,
        f"{d.p:.3f}" if d.p >= 0.001 else "< 0.001",
        f"{row.gained} / {row.lost}",
    )
