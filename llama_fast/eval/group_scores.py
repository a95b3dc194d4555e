"""Scores of groups of tasks, weighted by the sizes of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llama_fast.eval.suite.loading import LoadedTasks


def add_groups(results: dict[str, Any], loaded: LoadedTasks) -> None:
    """Add the scores of groups whose tasks all have results.

    Args:
        results: the results of all tasks, as the harness returns them; changed in place.
        loaded: the tasks and groups.
    """
    if not results:
        return
    for name, group in loaded["groups"].items():
        members = [task.task_name for task in group.get_all_tasks()]
        if group.has_aggregation and all(member in results["results"] for member in members):
            score = group.aggregate(_with_sizes(results, members))
            score["sample_len"] = sum(_asked(results, member) for member in members)
            score["sample_count"] = dict.fromkeys(score["sample_count"], score["sample_len"])
            _correct_errors(score, group, results, members)
            results.setdefault("groups", {})[name] = score
            results.setdefault("group_subtasks", {})[name] = members


def _with_sizes(results: Mapping[str, Any], members: Sequence[str]) -> dict[str, Any]:
    """Results with the size of each benchmark, however many of its questions were asked."""
    sizes = results["n-samples"]
    return {
        name: {**results["results"][name], "sample_len": sizes[name]["original"]}
        for name in members
    }


def _asked(results: Mapping[str, Any], task: str) -> int:
    return int(results["n-samples"][task]["effective"])


def _correct_errors(
    score: dict[str, Any], group: Any, results: Mapping[str, Any], members: Sequence[str]
) -> None:
    """Give a group weighted by size the standard error of independent tasks.

    The harness pools the tasks' variances for the number of questions asked, which is not the
    weight here.
    """
    weighted = {config.metric for config in group.aggregate_metric_list if config.weight_by_size}
    for key in [key for key in score if "_stderr," in key]:
        metric, filter_name = key.split("_stderr,", 1)
        if metric not in weighted or not isinstance(score[key], (int, float)):
            continue
        of = [m for m in members if f"{metric},{filter_name}" in results["results"][m]]
        sizes = [results["n-samples"][m]["original"] for m in of]
        errors = [results["results"][m][key] for m in of]
        total = math.fsum((e * n) ** 2 for e, n in zip(errors, sizes, strict=True))
        score[key] = math.sqrt(total) / sum(sizes)
        # As many equal questions as have this variance, for intervals where all are wrong.
        asked = [_asked(results, m) for m in of]
        whole = math.fsum(n * n / k for n, k in zip(sizes, asked, strict=True))
        score["independent_questions"] = sum(sizes) ** 2 / whole
