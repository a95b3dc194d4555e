"""Code that the `bench_<op>.py` share. With `BENCH_QUICK=1` all cases are small."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from .baselines import choose
from .cases import Case, cases
from .implementation import Implementation, Unsupported
from .inputs import make_inputs
from .measure import TimedStep


def matrix(op: str) -> list[Any]:
    """Every case of `op` with every available implementation that supports the op."""
    present, _ = choose([], "cpu")
    quick = os.environ.get("BENCH_QUICK") == "1"
    return [
        pytest.param(case, side, id=f"{case.title} {case.dtype} {case.mode} {side.name}")
        for case in cases("cpu", [op], quick=quick)
        for side in present
        if op in side.build
    ]


def run_rounds(benchmark: Any, case: Case, implementation: Implementation) -> None:
    """Run nine rounds of an implementation on a case, after a warm-up; skip unsupported cases."""
    torch.compiler.reset()
    try:
        step = TimedStep(case, implementation, make_inputs(case))
    except Unsupported as error:
        pytest.skip(str(error) or f"{implementation.name} has no such case")
    benchmark.group = f"{case.op} {case.title} {case.dtype} {case.mode}"
    benchmark.pedantic(step, setup=step.restore, rounds=9, warmup_rounds=2)
