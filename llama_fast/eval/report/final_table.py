"""The tables at the end of an evaluation: the suite beside the paper, and each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from llama_fast._format import counted, fixed
from llama_fast.eval.report.groups import groups_of
from llama_fast.eval.report.levels import Levels, levels_of_parts, levels_of_task
from llama_fast.eval.report.names import Name
from llama_fast.eval.report.scores import score_of
from llama_fast.eval.suite import Part, Score, paper_table

# The paper's models of the smallest size.
PAPER_ROWS = ("MPT 7B", "Falcon 7B", "Llama 1 7B", "Llama 2 7B")
# Characters of a line from which on chance and headroom stand beside the scores, those of the
# suite's table without rows of the paper, and those of such a row.
WITH_LEVELS, SUITE_WIDTH, ROW_WIDTH = 80, 78, 10


class _ByWidth:
    """A table whose columns depend on the width of the terminal."""

    def __init__(self, draw: Callable[[int], RenderableType]) -> None:
        self.draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.draw(options.max_width)


def suite_table(scores: Sequence[Score], rows: Sequence[str] = PAPER_ROWS) -> RenderableType:
    """The suite's columns, one per line, beside rows of the paper, with notes below.

    A narrow terminal shows the last of the rows only.

    Args:
        scores: the result of `llama_fast.eval.suite.summarise`.
        rows: names of the paper's models.

    Raises:
        ValueError: the paper has no such model.
    """
    paper = paper_table()
    models = {row.name: {**row.scores, **row.safety} for row in paper.rows}
    for name in rows:
        if name not in models:
            raise ValueError(f"rows: expected some of {', '.join(models)}, got {name}")

    def draw(width: int) -> Group:
        fit = max(0, width - SUITE_WIDTH) // ROW_WIDTH
        return _suite_table(scores, list(rows)[max(0, len(rows) - fit) :], width >= WITH_LEVELS)

    return _ByWidth(draw)


def _suite_table(scores: Sequence[Score], rows: Sequence[str], with_levels: bool) -> Group:
    paper = paper_table()
    models = {row.name: {**row.scores, **row.safety} for row in paper.rows}
    table = Table(
        title="Beside the Llama 2 paper (%), with the 95 % confidence interval",
        title_justify="left",
    )
    table.add_column("group", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    _add_levels(table, with_levels)
    for name in rows:
        table.add_column(Text(name, overflow="fold"), justify="right", min_width=6)
    notes = []
    for score in scores:
        marks = ""
        if score.value is not None and score.missing:
            marks += "*"
            notes.append(f"* {score.column}: without {', '.join(score.missing)}")
        note = score.note or paper.footnotes.get(score.column)
        if note and score.value is not None:
            marks += "†"
            notes.append(f"† {score.column}: {note}")
        percent = score.higher_is_better is not None
        theirs = [models[name].get(score.column) for name in rows]
        scored = [part.name for part in score.parts if part.value is not None]
        lower = " ↓" if score.higher_is_better is False else ""
        table.add_row(
            Text(score.column + lower, style="bold"),
            Text(_value(score.value, percent) + marks, style="bold"),
            _interval(score.interval, percent),
            f"{score.questions:,}" if score.value is not None else "",
            *_levels(levels_of_parts(scored), score.value, with_levels),
            *("–" if value is None else fixed(value, 1) for value in theirs),
        )
        if len(score.parts) > 1:
            for part in score.parts:
                if part.value is not None:
                    value, interval = _value(part.value, percent), _interval(part.interval, percent)
                    levels = _levels(levels_of_parts([part.name]), part.value, with_levels)
                    label, n = Text(f"  {part.name}"), f"{part.questions:,}"
                    table.add_row(label, value, interval, n, *levels)
    if with_levels:
        notes.append(LEVELS)
    return Group(table, *(Text(note, style="dim") for note in notes))


LEVELS = "chance: score of guessing; room: points up to the human level, or to 100 if none is known"


def _add_levels(table: Table, with_levels: bool) -> None:
    for name in ("chance", "room") if with_levels else ():
        table.add_column(name, justify="right", no_wrap=True)


def _levels(levels: Levels | None, score: float | None, with_levels: bool) -> list[str]:
    """Cells with the score of guessing and the headroom, if they are shown."""
    if not with_levels:
        return []
    if levels is None or score is None:
        return ["", ""]
    return [fixed(levels.chance, 1), fixed(levels.headroom(score), 1)]


def task_table(
    results: Mapping[str, Any],
    keys: Mapping[str, str] | None = None,
    parts: Sequence[Part] = (),
) -> RenderableType:
    """All tasks with score, 95 % interval and number of questions, then the groups.

    Args:
        results: the result of the harness's `evaluate`.
        keys: task -> `metric,filter` of its score, where it is not the default.
        parts: benchmarks of the suite's table. The tasks of a benchmark with several tasks (MMLU
            has 57) are only counted below the table, and their groups are left out.
    """
    return _ByWidth(lambda width: _task_table(results, keys, parts, width >= WITH_LEVELS))


def _task_table(
    results: Mapping[str, Any],
    keys: Mapping[str, str] | None,
    parts: Sequence[Part],
    with_levels: bool,
) -> Table:
    several = {task: part.name for part in parts if len(part.tasks) > 1 for task in part.tasks}
    left_out = Counter(several[task] for task in results["results"] if task in several)
    table = Table(title="Tasks, with the 95 % confidence interval", title_justify="left")
    table.add_column("task", overflow="fold")
    table.add_column("metric")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("interval", justify="right", no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    _add_levels(table, with_levels)
    groups = groups_of(results, keys)
    # The harness lists groups among the tasks, too.
    group_names = {group.name for group in groups}
    for task, row in results["results"].items():
        if task in several or task in group_names:
            continue
        score = score_of(row, (keys or {}).get(task))
        asked = (results.get("n-samples") or {}).get(task) or {}
        n = f"{asked['effective']:,}" if "effective" in asked else ""
        name = Name(str(task))
        if score is None:
            table.add_row(name, "", "no score", "", n)
        else:
            levels = _levels(
                levels_of_task(task) if score.percent else None, score.value, with_levels
            )
            table.add_row(name, Name(score.metric), score.text, score.interval_text, n, *levels)
    # At the end, where the reader looks after the table has scrolled by.
    table.add_section()
    for group in groups:
        if all(task in several for task in group.tasks):
            continue  # shown in the suite's table
        name = Name(group.name, counted(len(group.tasks), "task"))
        n = "" if group.questions is None else f"{group.questions:,}"
        score = group.score
        known = levels_of_task(group.name) if score.percent else None
        levels = _levels(known, score.value, with_levels)
        cells = name, Name(score.metric), score.text, score.interval_text, n
        table.add_row(*cells, *levels, style="bold")
    if left_out:
        names = ", ".join(f"{count} of {name}" for name, count in left_out.items())
        table.caption, table.caption_justify = Text(f"and {names}: see the report"), "left"
    return table


def _value(value: float | None, percent: bool) -> str:
    return "–" if value is None else fixed(value, 1 if percent else 3)


def _interval(interval: tuple[float, float] | None, percent: bool) -> str:
    if interval is None:
        return ""
    return " to ".join(fixed(bound, 1 if percent else 3) for bound in interval)
