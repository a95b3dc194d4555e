"""Selects the metric that is a task's score, and formats it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_fast._format import fixed
from llama_fast.eval.intervals import Z95, interval_of_share, t_quantile

# The first of these that a task has is its score, unless the preset names another.
PREFERRED = (
    "acc_norm",
    "acc_mutual_info",
    "acc",
    "pass@1",
    "pass_at_1",
    "execution_match",
    "exact_match",
    "em",
    "exact",
    "f1",
    "bleu",
    "rougeL",
)
# Metrics between 0 and 1, shown in percent.
SHARES = frozenset((*PREFERRED, "mcc", "mc1", "mc2", "toxic")) - {"bleu", "rougeL", "exact"}
# The only metric of outputs that were not scored: toxigen_generation without its classifier.
UNSCORED = "unscored"


@dataclass(frozen=True)
class Score:
    """A task's score.

    Attributes:
        metric: the harness's name, such as `acc_norm`.
        filter: the harness's name of the answer filter, such as `none`.
        value: in percent if `percent`, else in the metric's own unit.
        stderr: standard error in the same unit; None if there is none.
        percent: whether `value` is in percent.
        scale: factor from the harness's number to `value`.
        questions: number of questions; None if unknown. Where they do not count equally, that of
            equal ones with the same variance.
        clusters: number of clusters, if questions share passages; the standard error is theirs.
    """

    metric: str
    filter: str
    value: float
    stderr: float | None
    percent: bool
    scale: float
    questions: float | None = None
    clusters: int | None = None

    @property
    def key(self) -> str:
        """The key in results.json, such as `acc_norm,none`."""
        return f"{self.metric},{self.filter}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval in the unit of `value`; None if it is not known.

        That of Wilson for shares, else value ± 1.96 standard errors (more for few clusters).
        """
        if self.percent and 0 <= self.value <= 100 and self.metric != "mcc":
            stderr = None if self.stderr is None else self.stderr / 100
            found = interval_of_share(self.value / 100, stderr, self.questions, self.clusters)
            return None if found is None else (100 * found[0], 100 * found[1])
        if not self.stderr:
            return None
        half = self.stderr * (Z95 if self.clusters is None else t_quantile(self.clusters - 1))
        return self.value - half, self.value + half

    @property
    def text(self) -> str:
        """The value, with % if it is in percent."""
        return f"{fixed(self.value, 1)} %" if self.percent else f"{self.value:.3g}"

    @property
    def interval_text(self) -> str:
        """The interval, such as "0.0 to 49.0"; empty if it is not known."""
        if self.interval is None:
            return ""
        low, high = self.interval
        return (
            f"{fixed(low, 1)} to {fixed(high, 1)}" if self.percent else f"{low:.3g} to {high:.3g}"
        )

    def __str__(self) -> str:
        """The value, and after ± the standard error; the interval where all answers are equal."""
        if not self.stderr:
            return self.text + (f" ({self.interval_text})" if self.interval_text else "")
        if not self.percent:
            return f"{self.text} ± {self.stderr:.2g}"
        return f"{fixed(self.value, 1)} ± {fixed(self.stderr, 1)} %"


def score_of(row: Mapping[str, Any], key: str | None = None) -> Score | None:
    """The score in a row of the harness's results.

    Args:
        row: `results[task]`: `{"acc,none": 0.4, "acc_stderr,none": 0.02, "alias": …}`.
        key: `metric,filter` or `metric` of the score; chosen by :data:`PREFERRED` if None.

    Returns:
        None if the row has no number or none of that key. QuAC, for example, has no F1 if no
        question that was asked has enough human agreement.
    """
    result: dict[tuple[str, str], float] = {}
    for name, value in row.items():
        metric, comma, filter_name = name.partition(",")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if comma and is_number and metric != UNSCORED and not metric.endswith("_stderr"):
            result[metric, filter_name] = float(value)
    if not result:
        return None
    if key is not None:
        asked = [at for at in result if key in (f"{at[0]},{at[1]}", at[0])]
        if not asked:
            return None
        metric, filter_name = asked[0]
    else:
        order = {name: at for at, name in enumerate(PREFERRED)}
        metric, filter_name = min(result, key=lambda at: order.get(at[0], len(order)))
    value = result[metric, filter_name]
    stderr = row.get(f"{metric}_stderr,{filter_name}")
    known = isinstance(stderr, (int, float)) and not math.isnan(stderr)
    # SQuAD v2, the only task with a metric `exact`, scores from 0 to 100.
    is_squad = ("exact", filter_name) in result
    share = metric in SHARES and not is_squad and not abs(value) > 1
    scale = 100.0 if share else 1.0
    return Score(
        metric,
        filter_name,
        scale * value,
        scale * float(stderr) if known and stderr is not None else None,
        share or is_squad,
        scale,
        _number(row, "independent_questions") or _number(row, "sample_len"),
        int(_number(row, "clusters") or 0) or None,
    )


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        return None
    return float(value)


def scores_of(results: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Score]:
    """Task or group -> its score, for those that have one.

    Args:
        results: the harness's results.
        keys: task -> `metric,filter` of its score; others are chosen by :data:`PREFERRED`.
    """
    rows = {**results.get("results", {}), **results.get("groups", {})}
    found = {task: score_of(row, keys.get(task)) for task, row in rows.items()}
    return {task: score for task, score in found.items() if score is not None}
