"""`make bench`: forward and backward of swiglu, ours beside its rivals."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case
from benchmarks.peers import Peer
from benchmarks.pytest_step import matrix, run_rounds


@pytest.mark.parametrize(("case", "peer"), matrix("swiglu"))
def test_swiglu(benchmark: Any, case: Case, peer: Peer) -> None:
    run_rounds(benchmark, case, peer)
