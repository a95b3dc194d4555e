"""`make bench`: forward and backward of attention, ours beside its rivals."""

from __future__ import annotations

import pytest

from benchmarks.cases import Case, cases
from benchmarks.peers import Peer, peers


@pytest.mark.parametrize("case", cases("attention"), ids=lambda c: f"{c.shape} {c.dtype}")
@pytest.mark.parametrize("peer", peers("attention"), ids=lambda p: p.name)
def test_attention(benchmark, case: Case, peer: Peer) -> None:
    benchmark.group = f"attention {case.shape} {case.dtype}"
    benchmark.pedantic(case.step(peer), rounds=9, warmup_rounds=2)
