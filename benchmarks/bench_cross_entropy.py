"""`make bench`: forward and backward of cross_entropy, ours beside its rivals."""

from __future__ import annotations

import pytest

from benchmarks.cases import Case, cases
from benchmarks.peers import Peer, peers


@pytest.mark.parametrize("case", cases("cross_entropy"), ids=lambda c: f"{c.shape} {c.dtype}")
@pytest.mark.parametrize("peer", peers("cross_entropy"), ids=lambda p: p.name)
def test_cross_entropy(benchmark, case: Case, peer: Peer) -> None:
    benchmark.group = f"cross_entropy {case.shape} {case.dtype}"
    benchmark.pedantic(case.step(peer), rounds=9, warmup_rounds=2)
