"""Converts lm-eval's results to the rows of the paper's table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llama_fast.eval.intervals import Z95, interval_of_share, mean_interval
from llama_fast.eval.suite.presets import Column, Part, Suite, suite

__all__ = ["PartScore", "Score", "summarise"]


@dataclass(frozen=True)
class PartScore:
    """A benchmark's score.

    Attributes:
        name: the benchmark.
        value: percent (BOLD: sentiment from -1 to 1); None without a scored task.
        stderr: standard error of ``value``; None if unknown.
        questions: number of questions.
        missing: its tasks without a result.
        interval: bounds of the 95 % confidence interval in the unit of ``value``; None if unknown.
    """

    name: str
    value: float | None
    stderr: float | None
    questions: int
    missing: tuple[str, ...]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Score:
    """A row of the table: one column of the suite.

    Attributes:
        column: name of the column.
        value: mean of the parts that have a value, in percent (BOLD: from -1 to 1); None if no
            part has one.
        stderr: standard error of ``value`` for independent parts; None if unknown.
        questions: number of questions.
        parts: the benchmarks in the column.
        missing: benchmarks or tasks without a result. If not empty, ``value`` is not that of the
            whole column.
        safety: whether the row belongs to the safety table.
        higher_is_better: None if neither direction is better.
        note: caveat on the comparison with the paper; may be empty.
        interval: bounds of the 95 % confidence interval in the unit of ``value``, from those of the
            parts; None if unknown.
    """

    column: str
    value: float | None
    stderr: float | None
    questions: int
    parts: tuple[PartScore, ...]
    missing: tuple[str, ...]
    safety: bool
    higher_is_better: bool | None
    note: str
    interval: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as data for JSON."""
        return asdict(self)


def summarise(results: Mapping[str, Any], preset: str | Suite = "llama2-paper") -> list[Score]:
    """The rows of a suite from the results of ``lm_eval.evaluator.evaluate``.

    A part's value is the mean of its tasks, weighted by the number of questions that each has,
    whether or not all were asked (ToxiGen's is the mean over its target groups); a column's value
    is the mean of its parts. The standard error of a part is sqrt(sum of (n_i s_i)^2) / sum of n_i,
    that of a column sqrt(sum of s_p^2) / number of parts.

    Args:
        results: the harness's results, or the content of ``results.json``.
        preset: the suite, or the name of a preset.

    Returns:
        One row per column, in the suite's order, including columns without a result.
    """
    columns = (suite(preset) if isinstance(preset, str) else preset).columns
    return [_column(column, results) for column in columns]


def _column(column: Column, results: Mapping[str, Any]) -> Score:
    parts = tuple(_part(part, results) for part in column.parts)
    scored = [part for part in parts if part.value is not None]
    missing: list[str] = []
    for part in parts:
        missing += [part.name] if part.value is None else part.missing
    values = [part.value for part in scored if part.value is not None]
    errors = [part.stderr for part in scored if part.stderr is not None]
    value = stderr = interval = None
    if values:
        value = math.fsum(values) / len(values)
        intervals = [part.interval for part in scored if part.interval is not None]
        if len(intervals) == len(values):
            interval = mean_interval(values, intervals)
        if len(errors) == len(values):
            stderr = math.sqrt(math.fsum(e * e for e in errors)) / len(values)
    return Score(
        column.name,
        value,
        stderr,
        sum(part.questions for part in scored),
        parts,
        tuple(missing),
        column.safety,
        column.higher_is_better,
        column.note,
        interval,
    )


def _part(part: Part, results: Mapping[str, Any]) -> PartScore:
    if part.subgroups:
        return _mean_of_subgroups(part, results)
    metric, _, filter_name = part.metric.partition(",")
    error_key = f"{metric}_stderr,{filter_name}"
    values, errors, sizes, numbers, missing = [], [], [], [], []
    alone: list[tuple[int, float]] = []  # size and score of tasks of which one question was asked
    clusters = None
    for task in part.tasks:
        scores = results.get("results", {}).get(task, {})
        value = scores.get(part.metric)
        size, number = _sizes(results, task)
        if not isinstance(value, (int, float)) or math.isnan(value) or number == 0:
            missing.append(task)
            continue
        error = scores.get(error_key)
        if number == 1:
            alone.append((size, float(value) * part.scale))
        values.append(float(value) * part.scale)
        sizes.append(size)
        numbers.append(number)
        # Of several tasks there are enough for a normal distribution.
        clusters = int(scores.get("clusters") or 0) or None if len(part.tasks) == 1 else None
        if number > 1 and isinstance(error, (int, float)) and not math.isnan(error):
            errors.append(float(error) * part.scale)
    total = sum(sizes)
    if not values:
        return PartScore(part.name, None, None, 0, tuple(missing))
    mean = math.fsum(v * n for v, n in zip(values, sizes, strict=True)) / total
    stderr = None
    if len(errors) == len(values) or (len(alone) > 1 and len(errors) + len(alone) == len(values)):
        of_several = [n for n, k in zip(sizes, numbers, strict=True) if k > 1 or not alone]
        variance = math.fsum((e * n) ** 2 for e, n in zip(errors, of_several, strict=True))
        # Single questions have no variance of their own: together they are one stratum.
        if alone:
            parts_of_sum = [n * value for n, value in alone]
            middle = math.fsum(parts_of_sum) / len(alone)
            spread = math.fsum((x - middle) ** 2 for x in parts_of_sum)
            variance += spread * len(alone) / (len(alone) - 1)
        stderr = math.sqrt(variance) / total
    # As many questions of equal weight as have the variance of these.
    equal = total**2 / math.fsum(n * n / k for n, k in zip(sizes, numbers, strict=True))
    interval = _interval(mean, stderr, equal, clusters, part.scale == 1 and metric != "exact")
    return PartScore(part.name, mean, stderr, sum(numbers), tuple(missing), interval)


def _interval(
    value: float, stderr: float | None, n: float, clusters: int | None, is_unbounded: bool
) -> tuple[float, float] | None:
    """The interval of a score in percent, or of one that is no share."""
    if is_unbounded:
        return (value - Z95 * stderr, value + Z95 * stderr) if stderr else None
    error = None if stderr is None else stderr / 100
    found = interval_of_share(value / 100, error, n, clusters)
    return None if found is None else (100 * found[0], 100 * found[1])


def _mean_of_subgroups(part: Part, results: Mapping[str, Any]) -> PartScore:
    """The plain mean of the subgroups' scores; for one task.

    The standard error treats subgroups as independent; a question may belong to several.
    """
    (task,) = part.tasks
    metric, _, filter_name = part.metric.partition(",")
    row = results.get("results", {}).get(task, {})
    name = re.compile(rf"{re.escape(metric)}\.(.*),{re.escape(filter_name)}")
    values, errors = [], []
    for key, value in row.items():
        found = name.fullmatch(key)
        is_score = found is not None and not found[1].endswith("_stderr")
        if not is_score or not isinstance(value, (int, float)) or math.isnan(value):
            continue
        assert found is not None
        values.append(part.scale * value)
        error = row.get(f"{metric}.{found[1]}_stderr,{filter_name}")
        if isinstance(error, (int, float)) and not math.isnan(error):
            errors.append(part.scale * error)
    if not values:
        return PartScore(part.name, None, None, 0, part.tasks)
    stderr = None
    if len(errors) == len(values):
        stderr = math.sqrt(math.fsum(error * error for error in errors)) / len(errors)
    absent = part.subgroups - len(values)
    missing = (f"{absent} of {part.subgroups} groups",) if absent > 0 else ()
    value, asked = math.fsum(values) / len(values), _sizes(results, task)[1]
    interval = _interval(value, stderr, asked, None, False)
    return PartScore(part.name, value, stderr, asked, missing, interval)


def _sizes(results: Mapping[str, Any], task: str) -> tuple[int, int]:
    """Number of questions of the benchmark, and how many were asked."""
    counts = results.get("n-samples", {}).get(task)
    if isinstance(counts, Mapping):
        asked = int(counts.get("effective", 0))
        return int(counts.get("original") or asked), asked
    asked = int(results.get("results", {}).get(task, {}).get("sample_len", 0))
    return asked, asked
