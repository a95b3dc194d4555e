"""HumanEval and MBPP by their authors' own solutions, in the sandbox."""

from __future__ import annotations

from itertools import combinations
from statistics import mean
from typing import Any

import pytest

from llama_fast.eval.suite import LoadedTasks
from llama_fast.eval.suite.code import CodeEval, CodeNotAllowedError, pass_at_k


def humaneval(task: Any, index: int, completion: str) -> float:
    doc = task.eval_docs[index]
    instance = task.construct_requests(doc, task.doc_to_text(doc), metadata=("humaneval", index, 1))
    instance.resps = [completion]
    task._instances = [instance]
    task.apply_filters()
    return task.process_results(doc, [instance.filtered_resps["create_test"]])["pass@1"]


@pytest.mark.parametrize("index", range(9))
def test_humaneval_solutions_pass_and_broken_ones_fail(
    index: int, suite_tasks: LoadedTasks
) -> None:
    task = suite_tasks["tasks"]["humaneval_sampled"]
    solution = task.eval_docs[index]["canonical_solution"]
    assert humaneval(task, index, solution) == 1.0
    assert humaneval(task, index, "    return 'nonsense'\n") == 0.0
    assert humaneval(task, index, "    import os; os._exit(0)\n") == 0.0


@pytest.mark.parametrize("index", range(5))
def test_mbpp_solutions_pass_and_broken_ones_fail(index: int, suite_tasks: LoadedTasks) -> None:
    task = suite_tasks["tasks"]["mbpp_sampled"]
    doc = task.eval_docs[index]
    assert task.process_results(doc, [doc["code"]]) == {"pass_at_1": 1.0}
    assert task.process_results(doc, ["def x(:"]) == {"pass_at_1": 0.0}


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (6, 3, 4)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_program(n: int, c: int, k: int) -> None:
    draws = [any(i < c for i in draw) for draw in combinations(range(n), k)]
    assert pass_at_k(n, c, k) == pytest.approx(mean(draws))


def test_several_programs_a_problem() -> None:
    right, wrong = "def f():\n    return 1", "def f():\n    return 2"
    scores, details = CodeEval(True).compute(
        ["assert f() == 1", "assert f() == 2"], [[right, wrong], [right, right]], [1, 2, 3]
    )
    assert scores == {"pass@1": 0.25, "pass@2": 0.5}
    assert [entry["passed"] for entry in details[0]] == [True, False]
    assert details[1][0]["result"] == "failed: AssertionError: "


def test_nothing_runs_without_permission() -> None:
    with pytest.raises(CodeNotAllowedError, match="--allow-code"):
        CodeEval(False).compute(["pass"], [["pass"]], [1])
