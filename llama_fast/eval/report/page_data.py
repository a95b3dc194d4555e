"""Collects the data of the HTML page from runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_fast.eval.report.calibration import (
    Calibration,
    calibrate,
    confidences,
    has_long_options,
)
from llama_fast.eval.report.compare import Comparison, TaskComparison, join_names
from llama_fast.eval.report.facts import facts_of, num_questions
from llama_fast.eval.report.groups import groups_of
from llama_fast.eval.report.levels import (
    Levels,
    levels_of_options,
    levels_of_parts,
    levels_of_task,
)
from llama_fast.eval.report.questions import Question, read_questions
from llama_fast.eval.report.results import Run
from llama_fast.eval.report.scores import Score, score_of
from llama_fast.eval.report.suites import column_of, columns_of, metric_keys, metric_of, preset_of
from llama_fast.eval.report.titles import Heading, heading, titles
from llama_fast.eval.suite import Score as ColumnScore
from llama_fast.eval.suite import paper_table

# Characters that the page shows: the end of a prompt, the beginning of answers and options.
PROMPT, ANSWER, OPTION = 1_500, 1_500, 600
PAPER_ROWS = ("Llama 1 7B", "Llama 2 7B")
ALL_TASKS = "all tasks"


@dataclass(frozen=True)
class PageData:
    """The page's data.

    Attributes:
        summary: read when the page opens.
        questions: the questions of each task, decoded when the task is opened.
    """

    summary: dict[str, Any]
    questions: list[list[dict[str, Any]]]


def collect(
    run: Run,
    other: Run | None,
    names: Sequence[str],
    comparison: Comparison | None,
    max_questions: int,
    rows: Sequence[str] | None,
) -> PageData:
    """Collect the page's data; see :func:`~.html.write_page`."""
    runs = [run] if other is None else [run, other]
    tasks = list(dict.fromkeys(task for item in runs for task in item.tasks))
    columns = _columns(runs)
    index: list[dict[str, Any]] = []
    blocks: list[list[dict[str, Any]]] = []
    calibration: list[dict[str, Any]] = []
    uncalibrated: dict[str, None] = {}
    pairs: list[list[tuple[float, bool]]] = [[] for _ in runs]
    levels: dict[str, Levels] = {}
    cut = shown = 0
    for task in tasks:
        asked = [_questions(item, task) for item in runs]
        for at, questions in enumerate(asked):
            result = confidences(questions or [])
            if result and has_long_options(questions or []):
                uncalibrated[task] = None
                continue
            pairs[at] += result
            calibration += _calibration(task, at, calibrate(result))
        if found := levels_of_task(task) or levels_of_options(asked[0] or asked[-1] or []):
            levels[task] = found
        merged = _merge(asked)
        if merged:
            selected = _select(merged, max_questions)
            block = f"block-{len(blocks)}"
            index.append(
                {"task": task, "block": block, "total": len(merged), "shown": len(selected)}
            )
            blocks.append(_entries(selected))
            cut += sum(bool(entry["cut"]) for entry in blocks[-1])
            shown += len(selected)
    if len({item["task"] for item in calibration}) > 1:
        overall = [
            _calibration(ALL_TASKS, at, calibrate(result)) for at, result in enumerate(pairs)
        ]
        calibration = [item for group in overall for item in group] + calibration
    total_questions = sum(int(block["total"]) for block in index)
    summary = {
        "runs": [_run(item, name) for item, name in zip(runs, names, strict=True)],
        "paper": _paper(columns, rows),
        "columns": columns,
        "tasks": [_task(runs, task, levels.get(task)) for task in tasks],
        "groups": _groups(runs),
        "calibration": calibration,
        "uncalibrated": list(uncalibrated),
        "compared": None if comparison is None else _compared(comparison),
        "questions": index,
        "limits": _limits(total_questions, shown, cut, max_questions),
    }
    return PageData(summary, blocks)


def _run(run: Run, name: str) -> dict[str, Any]:
    facts, technical = facts_of(run)
    left_out = run.metadata.get("not_scored") or {}
    if not isinstance(left_out, dict):
        left_out = {str(part): "" for part in left_out}
    return {
        "name": name,
        "facts": facts,
        "technical": technical,
        "command": run.metadata.get("command"),
        "earlierCommands": run.metadata.get("earlier_commands") or [],
        "notes": notes.split("; ") if (notes := run.metadata.get("notes")) else [],
        "notScored": [[str(part), str(why)] for part, why in left_out.items()],
    }


def _task(runs: Sequence[Run], task: str, levels: Levels | None) -> dict[str, Any]:
    scores = [_score(item, task) for item in runs]
    known = next((score for score in scores if score is not None), None)
    column = next((name for item in runs if (name := column_of(item, task))), None)
    return {
        "name": task,
        "column": column,
        "metric": "no score" if known is None else known.metric,
        "percent": known is not None and known.percent,
        "asked": [num_questions(item, task) for item in runs],
        "scores": [_interval(score) for score in scores],
        **_beside(levels, known is not None and known.percent),
    }


def _beside(levels: Levels | None, percent: bool) -> dict[str, float | None]:
    """Score of guessing and top of the scale; None where they are not known."""
    if levels is None or not percent:
        return {"chance": None, "top": None}
    return {"chance": levels.chance, "top": levels.top}


def _groups(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Groups of tasks: rows like those of tasks, with the tasks in each group."""
    per_run = []
    for run in runs:
        preset = preset_of(run)
        keys = None if preset is None else metric_keys(preset)
        per_run.append({group.name: group for group in groups_of(run.results, keys)})
    result = []
    for name in dict.fromkeys(name for groups in per_run for name in groups):
        groups = [one_run.get(name) for one_run in per_run]
        known = next(group for group in groups if group is not None)
        result.append(
            {
                "name": name,
                "tasks": list(dict.fromkeys(t for group in groups if group for t in group.tasks)),
                "metric": known.score.metric,
                "percent": known.score.percent,
                "asked": [None if group is None else group.questions for group in groups],
                "scores": [None if group is None else _interval(group.score) for group in groups],
                **_beside(levels_of_task(name), known.score.percent),
            }
        )
    return result


def _interval(score: Score | None) -> dict[str, Any] | None:
    """Value, standard error, and bounds of the 95 % confidence interval of a score."""
    if score is None:
        return None
    return {"value": score.value, "stderr": score.stderr, "interval": score.interval}


def _score(run: Run, task: str) -> Score | None:
    if task not in run.results["results"]:
        return None
    score = score_of(run.results["results"][task], metric_of(run, task))
    return None if score is None or not math.isfinite(score.value) else score


def _columns(runs: Sequence[Run]) -> list[dict[str, Any]]:
    per_run = [{row.column: row for row in columns_of(run)} for run in runs]
    names = dict.fromkeys(name for rows in per_run for name in rows)
    paper = paper_table()
    result = []
    for name in names:
        rows = [one_run.get(name) for one_run in per_run]
        row = next(row for row in rows if row is not None)
        footnote = paper.footnotes.get(name)
        parts = [part.name for part in row.parts if part.value is not None]
        result.append(
            {
                "name": name,
                "safety": row.safety,
                "percent": row.higher_is_better is not None,
                "higherIsBetter": row.higher_is_better,
                "mark": "†" if footnote else "",
                "notes": [note for note in (footnote, row.note) if note],
                "scores": [_column_score(row) for row in rows],
                **_beside(levels_of_parts(parts), True),
                "paper": [{**item.scores, **item.safety}.get(name) for item in paper.rows],
            }
        )
    return result


def _column_score(row: ColumnScore | None) -> dict[str, Any] | None:
    if row is None or row.value is None:
        return None
    note = ""
    if row.missing:
        note = f"not the whole column: without {join_names(row.missing, 6)}"
    return {"value": row.value, "stderr": row.stderr, "interval": row.interval, "note": note}


def _paper(columns: Sequence[Any], rows: Sequence[str] | None) -> dict[str, Any] | None:
    table = paper_table()
    names = [row.name for row in table.rows]
    for name in rows or ():
        if name not in names:
            raise ValueError(f"rows: expected some of {', '.join(names)}, got {name}")
    if not columns:
        return None
    return {
        "source": table.source,
        "rows": names,
        "chosen": [names.index(name) for name in (PAPER_ROWS if rows is None else rows)],
    }


def _calibration(task: str, run: int, result: Calibration | None) -> list[dict[str, Any]]:
    if result is None:
        return []
    bins = [
        {
            "low": item.low,
            "high": item.high,
            "n": item.n,
            "confidence": item.confidence,
            "accuracy": item.accuracy,
        }
        for item in result.bins
    ]
    about = {"n": result.n, "ece": result.ece, "floor": result.floor}
    return [{"task": task, "run": run, **about, "bins": bins}]


def _compared(comparison: Comparison) -> dict[str, Any]:
    return {
        "how": "B - A on the questions that both answered, in percentage points where scores are "
        "shares; 95 % confidence interval, and two-sided p of the sign-flip test (for scores of 0 "
        "or 1, McNemar's exact test). Questions about the same passage count as one cluster. "
        "Won: B is right where A is wrong; lost: the reverse.",
        "tasks": [_difference(row, False) for row in comparison.tasks],
        "overall": [_difference(row, True) for row in comparison.overall],
        "conditions": comparison.conditions,
        "notices": list(comparison.notices),
    }


def _difference(row: TaskComparison, is_overall: bool) -> dict[str, Any]:
    return {
        "task": row.task,
        "percent": row.percent,
        "n": row.n,
        "value": row.difference.value,
        "low": row.difference.low,
        "high": row.difference.high,
        "p": row.difference.p,
        "won": row.gained,
        "lost": row.lost,
        "isOverall": is_overall,
    }


Pair = tuple[Question | None, ...]


def _questions(run: Run, task: str) -> list[Question] | None:
    if task not in run.files or task not in run.results["results"]:
        return None
    score = score_of(run.results["results"][task], metric_of(run, task))
    return None if score is None else read_questions(run, task, score)


def _merge(asked: Sequence[list[Question] | None]) -> list[Pair]:
    """Each question with its result in every run; None where a run did not ask it."""
    by_key = [{question.key: question for question in questions or ()} for questions in asked]
    keys = dict.fromkeys(key for questions in by_key for key in questions)
    return [tuple(questions.get(key) for questions in by_key) for key in keys]


def _select(pairs: list[Pair], limit: int) -> list[Pair]:
    if len(pairs) <= limit:
        return pairs
    order = sorted(range(len(pairs)), key=lambda at: (not _changed(pairs[at]), at))
    return [pairs[at] for at in sorted(order[:limit])]


def _changed(pair: Pair) -> bool:
    a, b = pair if len(pair) == 2 else (None, None)
    if a is None or b is None:
        return False
    return (a.score, a.picked, a.output) != (b.score, b.picked, b.output)


def _entries(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    asked = [next(item for item in pair if item is not None) for pair in pairs]
    headings = [heading(question.prompt) for question in asked]
    rows = zip(pairs, asked, headings, titles(headings), strict=True)
    return [_entry(*row) for row in rows]


def _entry(pair: Pair, question: Question, place: Heading, title: str) -> dict[str, Any]:
    return {
        "id": question.doc_id,
        "title": title,
        "start": max(0, place.start - max(0, len(question.prompt) - PROMPT)),
        "prompt": question.prompt[-PROMPT:],
        "cut": max(0, len(question.prompt) - PROMPT),
        "target": question.target[:ANSWER],
        "options": [_shorten(option.text, OPTION) for option in question.options],
        "gold": question.gold,
        "runs": [None if item is None else _answer(item) for item in pair],
    }


def _answer(question: Question) -> dict[str, Any]:
    logprobs = [option.logprob for option in question.options]
    odds = None
    if logprobs and math.isfinite(max(logprobs)):
        shares = [math.exp(value - max(logprobs)) for value in logprobs]
        odds = [round(share / math.fsum(shares), 4) for share in shares]
    return {
        "score": question.score,
        "picked": question.picked,
        "logprobs": [round(value, 4) for value in logprobs],
        "odds": odds,
        "output": question.output[:ANSWER],
        "cut": max(0, len(question.output) - ANSWER),
        "extracted": question.extracted[:ANSWER],
    }


def _shorten(text: str, limit: int) -> str:
    return (
        text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"
    )


def _limits(total: int, shown: int, cut: int, max_questions: int) -> list[str]:
    result = []
    if shown < total:
        result.append(
            f"The page holds {shown:,} of the run's {total:,} questions: at most "
            f"{max_questions:,} of a task; changed answers first, then in the data set's order. "
            "All are in the samples files beside results.json. Scores, calibration and differences "
            "are over all of them."
        )
    if cut:
        result.append(
            f"Of {cut:,} prompts only the last {PROMPT:,} characters are shown; answers longer "
            f"than {ANSWER:,} and options longer than {OPTION:,} characters are cut at their end."
        )
    return result
