"""Every prediction once an epoch, sequences nearly full, the same plan for the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_fast.data import pack_epoch


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1).filter(lambda n: max(n) > 1),
    seq_len=st.integers(1, 64),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_prediction_once(lengths: list[int], seq_len: int, seed: int, shuffle: bool) -> None:
    plan = pack_epoch(np.array(lengths), seq_len, seed=seed, epoch=1, shuffle=shuffle)
    made = {
        (int(d), int(s) + i)
        for d, s, n in zip(plan.document, plan.start, plan.length, strict=True)
        for i in range(n)
    }
    assert made == {(d, i) for d, n in enumerate(lengths) for i in range(n - 1)}
    assert plan.length.sum() == len(made)  # none twice
    used = np.add.reduceat(plan.length, plan.first[:-1])
    assert used.min() >= 1 and used.max() <= seq_len
    assert plan.first[0] == 0 and plan.first[-1] == len(plan.document)


def test_sequences_are_full() -> None:
    """Of documents as long as real ones, less than 1 % of the room is left empty."""
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 20_000).astype(np.int64) + 2
    plan = pack_epoch(lengths, 2048, seed=0, epoch=0)
    assert plan.length.sum() / (len(plan) * 2048) > 0.99


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(2, 500, 9_000)

    def order(seed: int, epoch: int) -> bytes:
        return pack_epoch(lengths, 512, seed=seed, epoch=epoch).document.tobytes()

    assert order(3, 4) == order(3, 4)
    assert len({order(3, 4), order(4, 3), order(3, 5)}) == 3


@pytest.mark.parametrize(
    ("lengths", "seq_len", "seed", "message"),
    [
        ([5], 0, 0, "seq_len: expected at least 1, got 0"),
        ([5], 1, -1, "seed, epoch: expected numbers >= 0"),
        ([1, 1], 8, 0, "lengths: expected a document of at least 2 tokens"),
    ],
)
def test_refusals(lengths: list[int], seq_len: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_epoch(np.array(lengths), seq_len, seed=seed, epoch=0)
