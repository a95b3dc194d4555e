"""`make bench`: attention, forward, and forward with backward, ours and the baselines."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case
from benchmarks.implementation import Implementation
from benchmarks.pytest_step import matrix, run_rounds


@pytest.mark.parametrize(("case", "implementation"), matrix("attention"))
def test_attention(benchmark: Any, case: Case, implementation: Implementation) -> None:
    run_rounds(benchmark, case, implementation)
