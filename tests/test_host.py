"""llama_fast._host: build facts, processor features, sequence packing."""

import itertools
import math
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

_host = pytest.importorskip("llama_fast._host", reason="host module not built")

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


@given(instances)
def test_every_sequence_is_placed_and_no_bin_is_overfull(case: tuple[np.ndarray, int]) -> None:
    lengths, capacity = case
    bin_of, n_bins = _host.pack_sequences(lengths, capacity)
    assert bin_of.dtype == np.int64 and bin_of.shape == lengths.shape
    assert sorted(set(bin_of.tolist())) == list(range(n_bins))  # no empty bin, no gap
    if n_bins:
        assert np.bincount(bin_of, lengths, minlength=n_bins).max() <= capacity


@given(instances)
def test_never_more_bins_than_next_fit(case: tuple[np.ndarray, int]) -> None:
    lengths, capacity = case
    n_bins = _host.pack_sequences(lengths, capacity)[1]
    assert math.ceil(lengths.sum() / capacity) <= n_bins <= next_fit(lengths, capacity)


def test_order_that_is_perfect_as_it_stands_is_kept() -> None:
    # Longest first would make 4 4 | 3 3 3 | 3.
    bin_of, n_bins = _host.pack_sequences([4, 3, 3, 4, 3, 3], 10)
    assert n_bins == 2 and bin_of.tolist() == [0, 0, 0, 1, 1, 1]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_at_most_three_halves_of_the_optimum(lengths: list[int]) -> None:
    assert _host.pack_sequences(lengths, 12)[1] <= 1.5 * fewest_bins(lengths, 12)


def test_best_fit_takes_the_fullest_bin_with_room() -> None:
    # 7 and 6 open bins with 3 and 4 left; the 3 belongs to the 7.
    bin_of, n_bins = _host.pack_sequences([3, 6, 7, 4], 10)
    assert n_bins == 2 and bin_of.tolist() == [0, 1, 0, 1]


def test_same_input_same_output_whatever_the_integer_type_or_stride() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 5000)
    expected, n_bins = _host.pack_sequences(lengths, 512)
    doubled = np.repeat(lengths, 2)[::2]  # strided
    for same in (lengths, lengths.astype(np.int32), lengths.astype(np.uint16), doubled):
        bin_of, again = _host.pack_sequences(same, 512)
        assert again == n_bins
        np.testing.assert_array_equal(bin_of, expected)
    assert n_bins <= math.ceil(lengths.sum() / 512) * 1.01  # many short sequences pack tightly


def test_nothing_to_pack() -> None:
    bin_of, n_bins = _host.pack_sequences([], 8)
    assert n_bins == 0 and bin_of.shape == (0,)
    assert _host.pack_sequences([0, 0], 8)[1] == 1


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
    lengths: object, capacity: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _host.pack_sequences(lengths, capacity)


@given(st.lists(st.integers(0, 2**20), max_size=30))
def test_cu_seqlens_is_the_cumulative_sum(lengths: list[int]) -> None:
    offsets = _host.cu_seqlens(np.array(lengths, dtype=np.int64))
    assert offsets.dtype == np.int32
    np.testing.assert_array_equal(offsets, np.cumsum([0, *lengths]))


def test_cu_seqlens_refuses_what_int32_cannot_hold() -> None:
    assert _host.cu_seqlens([2**31 - 1]).tolist() == [0, 2**31 - 1]
    with pytest.raises(ValueError, match=r"sum of at most 2147483647 \(int32\).*lengths\[1\]"):
        _host.cu_seqlens([2**31 - 1, 1])
    with pytest.raises(ValueError, match=r"lengths\[0\]: expected a length of at least 0, got -5"):
        _host.cu_seqlens([-5])


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux only")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86 flags")
def test_processor_features_agree_with_the_kernel() -> None:
    flags = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split(":", 1)[1].split())
            break
    features = _host.cpu_features()
    assert features and all(isinstance(v, bool) for v in features.values())
    assert features == {name: name in flags for name in features}


def test_build_info_names_the_compiler() -> None:
    info = _host.build_info()
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert int(info["cxx_standard"]) >= 201703
    assert info["architecture"] == platform.machine()
