"""Application scenarios as lm-evaluation-harness tasks: translation, question answering,
summarisation and semantic parsing.

    tasks = scenario_tasks("data", ["scenario_translation"])
    lm_eval.evaluator.evaluate(lm, {"tasks": tasks, "groups": scenario_groups(tasks)})

`data` is a folder that holds ``hub/`` and ``scenarios/``. docs/scenarios.md says what each task
measures.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.api.group import Group

    from .task import ScenarioTask

__all__ = ["SCENARIOS", "Scenario", "scenario_groups", "scenario_tasks"]


@dataclass(frozen=True)
class Scenario:
    """A group of tasks.

    Attributes:
        tasks: names of the tasks.
        metrics: metrics of every task in the group; higher is better.
        main_metric: the metric to show where there is room for one.
        perfect: value of the metrics if every answer is right.
        aggregation: how the group's value follows from its tasks': "mean", unweighted.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    main_metric: str
    perfect: float = 1.0
    aggregation: str = "mean"


SCENARIOS: Mapping[str, Scenario] = {
    "scenario_translation": Scenario(
        tasks=(
            "scenario_multi30k_en_de",
            "scenario_multi30k_en_fr",
            "scenario_multi30k_de_en",
            "scenario_multi30k_fr_en",
        ),
        metrics=("bleu", "chrf"),
        main_metric="bleu",
        perfect=100.0,
    ),
    "scenario_qa": Scenario(
        tasks=("scenario_nq_open", "scenario_squad"),
        metrics=("exact_match", "f1"),
        main_metric="exact_match",
    ),
    "scenario_summarization": Scenario(
        tasks=("scenario_dialogsum",),
        metrics=("rouge1", "rouge2", "rougeL"),
        main_metric="rougeL",
    ),
    "scenario_semantic_parsing": Scenario(
        tasks=("scenario_geoquery", "scenario_geoquery_query_split"),
        metrics=("exact_match", "execution_match"),
        main_metric="execution_match",
    ),
}


def scenario_tasks(
    data_dir: str | Path | None,
    names: Iterable[str] | None = None,
    *,
    num_fewshot: int | None = None,
) -> dict[str, ScenarioTask]:
    """The tasks by name, ready for ``lm_eval.evaluator.evaluate``.

    Args:
        data_dir: the folder with ``hub/`` and ``scenarios/``. Without it, question answering loads
            its data from the Hugging Face hub; the other scenarios need it.
        names: names of tasks or groups; all groups if None.
        num_fewshot: examples in a prompt; None for each task's own number.

    Raises:
        ValueError: an unknown name, a file with unexpected content, or more examples than the data
            have.
        MissingDataError: a data file is missing.
    """
    makers = _makers()
    folder = None if data_dir is None else Path(data_dir).expanduser()
    tasks: dict[str, ScenarioTask] = {}
    for name in SCENARIOS if names is None else names:
        if name not in SCENARIOS and name not in makers:
            near = difflib.get_close_matches(name, [*SCENARIOS, *makers], cutoff=0.4)
            raise ValueError(
                f"names: expected scenario tasks or groups, got {name!r}; nearest: "
                f"{', '.join(near or SCENARIOS)}"
            )
        for task in SCENARIOS[name].tasks if name in SCENARIOS else (name,):
            if task not in tasks:
                tasks[task] = makers[task](folder)
                if num_fewshot is not None:
                    tasks[task].set_shots(num_fewshot)
    return tasks


def scenario_groups(tasks: Mapping[str, object]) -> dict[str, Group]:
    """The harness's group objects for the groups whose tasks are all in `tasks`.

    A group's value is the unweighted mean of its tasks' values.
    """
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    groups = {}
    for name, scenario in SCENARIOS.items():
        if not all(task in tasks for task in scenario.tasks):
            continue
        means = [AggMetricConfig(metric=m, weight_by_size=False) for m in scenario.metrics]
        group = Group(name, aggregate_metric_list=means, metadata={"version": 1.0})
        for task in scenario.tasks:
            group.add(tasks[task])
        groups[name] = group
    return groups


def _makers() -> dict[str, Callable[[Path | None], ScenarioTask]]:
    """Task name -> function from the data folder to the task."""
    # The harness takes seconds to import; SCENARIOS alone should not.
    from . import question_answering, semantic_parsing, summarization, translation

    return {
        **translation.TASKS,
        **question_answering.TASKS,
        **summarization.TASKS,
        **semantic_parsing.TASKS,
    }
