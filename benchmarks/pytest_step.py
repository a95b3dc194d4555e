"""What the `bench_<op>.py` have in common. `BENCH_QUICK=1` shrinks every case."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from .cases import Case, cases
from .measure import Step
from .peers import Peer, Unsupported, choose
from .problem import problem


def matrix(op: str) -> list[Any]:
    """Every case of `op` with every peer that has the op and is present."""
    present, _ = choose([], "cpu")
    quick = os.environ.get("BENCH_QUICK") == "1"
    return [
        pytest.param(case, peer, id=f"{case.title} {case.dtype} {case.mode} {peer.name}")
        for case in cases("cpu", [op], quick=quick)
        for peer in present
        if op in peer.build
    ]


def run_rounds(benchmark: Any, case: Case, peer: Peer) -> None:
    """Nine rounds of `peer` on `case`, after a warm-up; skipped where it does not do the case."""
    torch.compiler.reset()
    try:
        step = Step(case, peer, problem(case))
    except Unsupported as error:
        pytest.skip(str(error) or f"{peer.name} has no such case")
    benchmark.group = f"{case.op} {case.title} {case.dtype} {case.mode}"
    benchmark.pedantic(step, setup=step.restore, rounds=9, warmup_rounds=2)
