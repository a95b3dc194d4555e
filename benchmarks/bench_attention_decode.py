"""`make bench`: attention over a cache, contiguous and in pages, ours beside its rivals."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case
from benchmarks.peers import Peer
from benchmarks.pytest_step import matrix, run_rounds


@pytest.mark.parametrize(("case", "peer"), matrix("attention_decode"))
def test_attention_decode(benchmark: Any, case: Case, peer: Peer) -> None:
    run_rounds(benchmark, case, peer)
