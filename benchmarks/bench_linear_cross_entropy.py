"""`make bench`: forward and backward of linear_cross_entropy, ours and the baselines."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case
from benchmarks.implementation import Implementation
from benchmarks.pytest_step import matrix, run_rounds


@pytest.mark.parametrize(("case", "implementation"), matrix("linear_cross_entropy"))
def test_linear_cross_entropy(benchmark: Any, case: Case, implementation: Implementation) -> None:
    run_rounds(benchmark, case, implementation)
