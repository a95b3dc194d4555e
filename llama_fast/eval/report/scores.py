"""Which of a task's metrics is its score, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# 95 % of a normal distribution lies within this many standard deviations.
Z95 = 1.959963984540054

# The first that a task has is its score, unless the run's metadata says otherwise.
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
# Shares between 0 and 1; shown in percent.
SHARES = frozenset((*PREFERRED, "mcc", "mc1", "mc2", "toxic")) - {"bleu", "rougeL", "exact"}
# All that a task has whose texts could only be kept: toxigen_generation without its classifier.
UNSCORED = "unscored"


@dataclass(frozen=True)
class Score:
    """A task's score.

    Attributes:
        metric: the harness's name, `acc_norm`.
        filter: the harness's name of the answer's filter, `none`.
        value: in percent if `percent`, else in the metric's own unit.
        stderr: standard error in the same unit, None if the harness gives none.
        percent: whether `value` is in percent.
        scale: factor that brought the harness's number to `value`.
    """

    metric: str
    filter: str
    value: float
    stderr: float | None
    percent: bool
    scale: float

    @property
    def key(self) -> str:
        """As results.json writes it: `acc_norm,none`."""
        return f"{self.metric},{self.filter}"

    @property
    def half_width(self) -> float | None:
        """Half of the 95 % confidence interval of a normal distribution."""
        return None if self.stderr is None else Z95 * self.stderr

    def __str__(self) -> str:
        text = f"{self.value:.1f}" if self.percent else f"{self.value:.3g}"
        if self.half_width is not None:
            text += f" ± {self.half_width:.1f}" if self.percent else f" ± {self.half_width:.2g}"
        return f"{text} %" if self.percent else text


def score_of(row: Mapping[str, Any], key: str | None = None) -> Score | None:
    """The score in a row of the harness's results.

    Args:
        row: `results[task]`: `{"acc,none": 0.4, "acc_stderr,none": 0.02, "alias": …}`.
        key: `metric,filter` or `metric` that is the score; by :data:`PREFERRED` if None.

    Returns:
        None if the row has no number, or none of that key: QuAC has no F1 where people agree on
        none of the questions asked.
    """
    found: dict[tuple[str, str], float] = {}
    for name, value in row.items():
        metric, comma, filter_name = name.partition(",")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if comma and is_number and metric != UNSCORED and not metric.endswith("_stderr"):
            found[metric, filter_name] = float(value)
    if not found:
        return None
    if key is not None:
        asked = [at for at in found if key in (f"{at[0]},{at[1]}", at[0])]
        if not asked:
            return None
        metric, filter_name = asked[0]
    else:
        order = {name: at for at, name in enumerate(PREFERRED)}
        metric, filter_name = min(found, key=lambda at: order.get(at[0], len(order)))
    value = found[metric, filter_name]
    stderr = row.get(f"{metric}_stderr,{filter_name}")
    known = isinstance(stderr, (int, float)) and not math.isnan(stderr)
    # SQuAD v2's own script counts from 0 to 100; only it has a metric `exact`.
    is_squad = ("exact", filter_name) in found
    share = metric in SHARES and not is_squad and not abs(value) > 1
    scale = 100.0 if share else 1.0
    return Score(
        metric,
        filter_name,
        scale * value,
        scale * float(stderr) if known and stderr is not None else None,
        share or is_squad,
        scale,
    )
