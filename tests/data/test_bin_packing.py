"""Best-fit-decreasing packing, compiled and in NumPy: right, and alike."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_fast.data import bin_packing
from llama_fast.ops.backends import library


class Packing(NamedTuple):
    """One implementation."""

    pack_sequences: Any
    cu_seqlens: Any


NUMPY = Packing(bin_packing.pack_sequences_numpy, bin_packing.cu_seqlens_numpy)
COMPILED = Packing(bin_packing.pack_sequences, bin_packing.cu_seqlens)
compiled_only = pytest.mark.skipif(
    library.missing_reason is not None, reason="nothing was compiled"
)
both = pytest.mark.parametrize(
    "packing", [pytest.param(COMPILED, id="compiled", marks=compiled_only),
                pytest.param(NUMPY, id="numpy")],
)  # fmt: skip

# A capacity and lengths that fit into it, long and short ones alike.
instances = st.integers(1, 60).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(0, capacity), max_size=40).map(lambda x: np.array(x, dtype=np.int64)),
        st.just(capacity),
    )
)


def next_fit(lengths: np.ndarray, capacity: int) -> int:
    """Bins used when sequences are taken in order and a bin is closed at the first misfit."""
    bins, room = 0, 0
    for length in lengths.tolist():
        if bins == 0 or length > room:
            bins, room = bins + 1, capacity
        room -= length
    return bins


def fewest_bins(lengths: list[int], capacity: int) -> int:
    """The optimum, by trying every assignment of a few sequences."""
    for n_bins in itertools.count(1):
        for bin_of in itertools.product(range(n_bins), repeat=len(lengths)):
            if np.bincount(bin_of, lengths, minlength=n_bins).max() <= capacity:
                return n_bins
    raise AssertionError


@both
@given(instances)
def test_every_sequence_is_placed_and_no_bin_is_overfull(
    packing: Packing, case: tuple[np.ndarray, int]
) -> None:
    lengths, capacity = case
    bin_of, n_bins = packing.pack_sequences(lengths, capacity)
    assert bin_of.dtype == np.int64 and bin_of.shape == lengths.shape
    assert sorted(set(bin_of.tolist())) == list(range(n_bins))  # no empty bin, no gap
    if n_bins:
        assert np.bincount(bin_of, lengths, minlength=n_bins).max() <= capacity


@both
@given(instances)
def test_never_more_bins_than_next_fit(packing: Packing, case: tuple[np.ndarray, int]) -> None:
    lengths, capacity = case
    n_bins = packing.pack_sequences(lengths, capacity)[1]
    assert math.ceil(lengths.sum() / capacity) <= n_bins <= next_fit(lengths, capacity)


@both
def test_order_that_is_perfect_as_it_stands_is_kept(packing: Packing) -> None:
    # Longest first would make 4 4 | 3 3 3 | 3.
    bin_of, n_bins = packing.pack_sequences([4, 3, 3, 4, 3, 3], 10)
    assert n_bins == 2 and bin_of.tolist() == [0, 0, 0, 1, 1, 1]


@both
@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_at_most_three_halves_of_the_optimum(packing: Packing, lengths: list[int]) -> None:
    assert packing.pack_sequences(lengths, 12)[1] <= 1.5 * fewest_bins(lengths, 12)


@both
def test_best_fit_takes_the_fullest_bin_with_room(packing: Packing) -> None:
    # 7 and 6 open bins with 3 and 4 left; the 3 belongs to the 7.
    bin_of, n_bins = packing.pack_sequences([3, 6, 7, 4], 10)
    assert n_bins == 2 and bin_of.tolist() == [0, 1, 0, 1]


@both
def test_same_input_same_output_whatever_the_integer_type_or_stride(packing: Packing) -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 5000)
    expected, n_bins = packing.pack_sequences(lengths, 512)
    doubled = np.repeat(lengths, 2)[::2]  # strided
    for same in (lengths, lengths.astype(np.int32), lengths.astype(np.uint16), doubled):
        bin_of, again = packing.pack_sequences(same, 512)
        assert again == n_bins
        np.testing.assert_array_equal(bin_of, expected)
    assert n_bins <= math.ceil(lengths.sum() / 512) * 1.01  # many short sequences pack tightly


@both
def test_nothing_to_pack(packing: Packing) -> None:
    bin_of, n_bins = packing.pack_sequences([], 8)
    assert n_bins == 0 and bin_of.shape == (0,)
    assert packing.pack_sequences([0, 0], 8)[1] == 1


@both
@pytest.mark.parametrize(
    ("lengths", "capacity", "error", "message"),
    [
        ([3, 9], 8, ValueError, r"lengths\[1\]: expected a length from 0 to .* 8, got 9"),
        ([3, -1], 8, ValueError, r"lengths\[1\]: .*got -1"),
        ([3], 0, ValueError, "capacity: expected a positive number, got 0"),
        ([[3]], 8, ValueError, "lengths: expected 1 dimension, got 2"),
        ([1.5], 8, TypeError, "lengths: expected integers, got float64"),
        ([True], 8, TypeError, "lengths: expected integers, got bool"),
        (["a"], 8, TypeError, "lengths: expected integers"),
        (np.array([2**63], dtype=np.uint64), 8, ValueError, r"lengths\[0\]"),
    ],
)
def test_bad_input_is_named(
    packing: Packing, lengths: object, capacity: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        packing.pack_sequences(lengths, capacity)


@both
@given(st.lists(st.integers(0, 2**20), max_size=30))
def test_cu_seqlens_is_the_cumulative_sum(packing: Packing, lengths: list[int]) -> None:
    offsets = packing.cu_seqlens(np.array(lengths, dtype=np.int64))
    assert offsets.dtype == np.int32
    np.testing.assert_array_equal(offsets, np.cumsum([0, *lengths]))


@both
def test_cu_seqlens_refuses_what_int32_cannot_hold(packing: Packing) -> None:
    assert packing.cu_seqlens([2**31 - 1]).tolist() == [0, 2**31 - 1]
    with pytest.raises(ValueError, match=r"sum of at most 2147483647 \(int32\).*lengths\[1\]"):
        packing.cu_seqlens([2**31 - 1, 1])
    with pytest.raises(ValueError, match=r"lengths\[0\]: expected a length of at least 0, got -5"):
        packing.cu_seqlens([-5])


# --- the two implementations agree -------------------------------------------------------------


@compiled_only
@given(instances)
def test_numpy_packs_as_the_compiled_function(case: tuple[np.ndarray, int]) -> None:
    bin_of, n_bins = COMPILED.pack_sequences(*case)
    numpy_bin_of, numpy_n_bins = NUMPY.pack_sequences(*case)
    assert numpy_n_bins == n_bins and type(numpy_n_bins) is int
    assert numpy_bin_of.dtype == bin_of.dtype
    np.testing.assert_array_equal(numpy_bin_of, bin_of)


@compiled_only
@given(st.lists(st.one_of(st.integers(-2, 40), st.integers(-(2**63), 2**63 - 1)), max_size=20))
def test_numpy_sums_and_refuses_as_the_compiled_function(lengths: list[int]) -> None:
    def outcome(packing: Packing) -> Any:
        try:
            return packing.cu_seqlens(np.array(lengths, dtype=np.int64)).tolist()
        except ValueError as error:
            return str(error)

    assert outcome(NUMPY) == outcome(COMPILED)


def test_training_data_loads_where_nothing_was_compiled() -> None:
    program = """
import numpy as np
from llama_fast.data import bin_packing, packing
assert bin_packing.library.missing_reason
assert bin_packing.cu_seqlens([2, 3]).tolist() == [0, 2, 5]
print(len(packing.pack_epoch(np.array([5, 9, 3, 40]), 16, seed=0, epoch=0)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LLAMA_FAST_LIBRARY": "/nowhere.so"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4
