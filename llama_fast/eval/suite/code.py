"""Scores programs written by a model (HumanEval, MBPP), which run in the sandbox only.

The harness's tasks use the metric "code_eval" of the package ``evaluate``, whose code is downloaded
and runs the programs with little protection. This module provides the metric in its place.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_fast.eval.suite import sandbox

__all__ = ["CodeEval", "CodeNotAllowedError", "check_allowed", "local_metrics", "pass_at_k"]

# The harness's task folders that run programs through "code_eval" only.
_SANDBOXED = ("humaneval", "humaneval_infilling", "mbpp")


class CodeNotAllowedError(ValueError):
    """A task would run programs written by the model, which is not allowed."""


class CodeEval:
    """The metric "code_eval": whether programs pass their tests.

    Args:
        allowed: whether programs may run at all.
        limits: what each program may use.
    """

    def __init__(self, allowed: bool, limits: sandbox.Limits | None = None) -> None:
        self.allowed = allowed
        self.limits = limits or sandbox.Limits()

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int]
    ) -> tuple[dict[str, float], dict[int, list[dict[str, Any]]]]:
        """Run every program with the tests of its problem.

        Args:
            references: the tests of each problem, as a program.
            predictions: the programs for each problem.
            k: numbers of attempts for which pass@k is estimated.

        Returns:
            "pass@k" -> share of problems, for each k with enough programs; and for each problem the
            outcome of its programs.

        Raises:
            CodeNotAllowedError: ``allowed`` is False.
            SandboxError: this machine cannot run programs safely.
        """
        if not self.allowed:
            raise CodeNotAllowedError(
                "the task runs programs that the model writes: allow it with --allow-code"
            )
        details: dict[int, list[dict[str, Any]]] = {}
        for problem, (tests, programs) in enumerate(zip(references, predictions, strict=True)):
            details[problem] = []
            for program in programs:
                outcome = sandbox.run(program, self.limits, _with_helpers(program, tests))
                result = outcome.status if outcome.passed else f"{outcome.status}: {outcome.error}"
                details[problem].append({"passed": outcome.passed, "result": result})
        counts = [(len(d), sum(e["passed"] for e in d)) for d in details.values()]
        scores = {
            f"pass@{tries}": sum(pass_at_k(n, c, tries) for n, c in counts) / len(counts)
            for tries in k
            if counts and all(n >= tries for n, _ in counts)
        }
        return scores, details


def _with_helpers(program: str, tests: str) -> str:
    """The tests, preceded by the helpers of HumanEval's prompt that three of them call.

    A program for tests that end in ``check(name)`` starts with the prompt, which has imports and
    helpers before ``def name``. They belong to the benchmark and run with the tests, so that the
    program cannot redefine them.
    """
    entry = re.search(r"^check\((\w+)\)\s*\Z", tests, re.MULTILINE)
    start = entry and re.search(rf"^def {entry[1]}\b", program, re.MULTILINE)
    return f"{program[: start.start()]}\n{tests}" if start else tests


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k programs drawn from n is right, if c of them are.

    1 - C(n - c, k) / C(n, k), the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374).
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def check_allowed(name: str, manager: Any, allow_code: bool) -> None:
    """Raise unless the task runs no programs of the model, or may run them in the sandbox.

    Args:
        name: name of the task.
        manager: the harness's task manager with the task.
        allow_code: whether programs may run.

    Raises:
        CodeNotAllowedError: the task runs programs without permission or outside the sandbox.
        SandboxError: this machine cannot run programs safely.
    """
    entry = manager.task_index.get(name)
    if entry is None or not (entry.cfg or {}).get("unsafe_code"):
        return
    if not allow_code:
        raise CodeNotAllowedError(
            f"{name} runs programs that the model writes: allow it with --allow-code"
        )
    if not any(folder in Path(entry.yaml_path).parts for folder in _SANDBOXED):
        raise CodeNotAllowedError(
            f"{name} runs programs that the model writes outside the sandbox: not supported"
        )
    sandbox.measures()


@contextmanager
def local_metrics(allow_code: bool) -> Iterator[None]:
    """Inside the block, ``evaluate.load("code_eval")`` returns :class:`CodeEval` if code may run.

    The harness's modules load the metric at import, so they are imported again. Without permission
    nothing is replaced, because no task that runs code is loaded.
    """
    for folder in _SANDBOXED:
        sys.modules.pop(f"lm_eval.tasks.{folder}.utils", None)
    if not allow_code:
        yield
        return
    import evaluate

    stock = evaluate.load

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        return CodeEval(True) if path == "code_eval" else stock(path, *args, **kwargs)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = stock
