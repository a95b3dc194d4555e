"""Every prediction once an epoch, rows nearly full, the same rows for the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_fast.data import pack_epoch


@given(
    lengths=st.lists(st.integers(1, 200), min_size=1).filter(lambda n: max(n) > 1),
    capacity=st.integers(1, 64),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_prediction_once(lengths: list[int], capacity: int, seed: int, shuffle: bool) -> None:
    rows = pack_epoch(np.array(lengths), capacity, seed=seed, epoch=1, shuffle=shuffle)
    made = {
        (int(d), int(s) + i)
        for d, s, n in zip(rows.document, rows.start, rows.length, strict=True)
        for i in range(n)
    }
    assert made == {(d, i) for d, n in enumerate(lengths) for i in range(n - 1)}
    assert rows.length.sum() == len(made)  # none twice
    used = np.add.reduceat(rows.length, rows.first[:-1])
    assert used.min() >= 1 and used.max() <= capacity
    assert rows.first[0] == 0 and rows.first[-1] == len(rows.document)


def test_rows_are_full() -> None:
    """Of documents as long as real ones, less than 1 % of the room is left empty."""
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 20_000).astype(np.int64) + 2
    rows = pack_epoch(lengths, 2048, seed=0, epoch=0)
    assert rows.length.sum() / (len(rows) * 2048) > 0.99


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(2, 500, 9_000)

    def rows(seed: int, epoch: int) -> bytes:
        return pack_epoch(lengths, 512, seed=seed, epoch=epoch).document.tobytes()

    assert rows(3, 4) == rows(3, 4)
    assert len({rows(3, 4), rows(4, 3), rows(3, 5)}) == 3


@pytest.mark.parametrize(
    ("lengths", "capacity", "seed", "message"),
    [
        ([5], 0, 0, "capacity: expected at least 1, got 0"),
        ([5], 1, -1, "seed, epoch: expected numbers >= 0"),
        ([1, 1], 8, 0, "lengths: expected a document of at least 2 tokens"),
    ],
)
def test_refusals(lengths: list[int], capacity: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_epoch(np.array(lengths), capacity, seed=seed, epoch=0)
