"""The rules that choose grids, splits and clusters: plain C++, so that they need no GPU."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import pytest

from tests.cuda.library import compiled

A100, H100, B200 = (80, 108, 163 << 10), (90, 132, 227 << 10), (100, 148, 227 << 10)
GPUS = {"A100": A100, "H100": H100, "B200": B200}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("plans.cpp", tmp_path_factory.mktemp("plans"))


def call(function: Any, names: str, *arguments: int) -> dict[str, int]:
    """A function of 64-bit numbers (the first two: 32) that returns a struct of such numbers."""

    class Result(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int64) for name in names.split()]

    function.restype = Result
    result = function(*(ctypes.c_int64(a) for a in arguments))
    return {name: getattr(result, name) for name in names.split()}


def resident(plans: ctypes.CDLL, gpu: tuple[int, ...], tokens: int, chunks: int, size: int) -> Any:
    names = "fits cluster threads share shared_bytes"
    return call(plans.resident, names, *gpu, tokens, chunks, size)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
def test_resident_rows_are_covered_and_fit(plans: ctypes.CDLL, gpu: tuple[int, ...]) -> None:
    for tokens, chunks, size in itertools.product(
        (1, 7, 100, 4096, 10**6), (1, 2, 31, 127, 1002, 4097, 16034, 65538, 10**6), (2, 4, 16)
    ):
        plan = resident(plans, gpu, tokens, chunks, size)
        assert plan["share"] * plan["cluster"] >= chunks
        assert plan["cluster"] in (1, 2, 4, 8) and (gpu[0] >= 90 or plan["cluster"] == 1)
        assert plan["threads"] % 32 == 0 and 32 <= plan["threads"] <= 512
        assert plan["shared_bytes"] >= 1024 + plan["share"] * size
        assert not plan["fits"] or plan["shared_bytes"] <= gpu[2]
        # No block without a chunk, but for what sticks out of a row.
        assert plan["share"] * (plan["cluster"] - 1) < chunks + plan["cluster"]


# Classes, bytes of a logit, cluster on the H100, whether the row is resident on the A100.
VOCABULARIES = [
    (8192, 2, 1, True),
    (32000, 2, 1, True),
    (50257, 2, 2, True),
    (128256, 2, 4, False),
    (151936, 2, 8, False),
    (262144, 2, 8, False),
    (32000, 4, 2, True),
    (128256, 4, 8, False),
    (262144, 4, 8, False),
]


@pytest.mark.parametrize(("classes", "size", "cluster", "on_a100"), VOCABULARIES)
def test_vocabularies(
    plans: ctypes.CDLL, classes: int, size: int, cluster: int, on_a100: bool
) -> None:
    """On GPUs with clusters every vocabulary up to 256k is read and written once."""
    chunks = classes * size // 16 + 2
    for gpu in (H100, B200):
        plan = resident(plans, gpu, 4096, chunks, 16)
        assert plan["fits"] and plan["cluster"] == cluster
    assert resident(plans, A100, 4096, chunks, 16)["fits"] == on_a100


@pytest.mark.parametrize("tokens", (1, 8, 16))
def test_few_rows_get_larger_clusters(plans: ctypes.CDLL, tokens: int) -> None:
    chunks = 32000 // 8 + 2
    assert resident(plans, H100, tokens, chunks, 16)["cluster"] == 4
    assert resident(plans, H100, 4096, chunks, 16)["cluster"] == 1
    # Of eight classes a block of its own would do nothing.
    assert resident(plans, H100, tokens, 3, 16)["cluster"] == 1


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
def test_sweeps_cover_a_row_and_fill_the_gpu(plans: ctypes.CDLL, gpu: tuple[int, ...]) -> None:
    for tokens, chunks in itertools.product(
        (1, 3, 60, 200, 5000), (1, 500, 4096, 16034, 65538, 10**6)
    ):
        plan = call(plans.sweep, "splits threads partial share", *gpu[:2], tokens, chunks)
        assert plan["share"] * plan["splits"] >= chunks
        assert plan["partial"] == (plan["splits"] > (8 if gpu[0] >= 90 else 1))
        assert plan["splits"] == 1 or plan["share"] * 2 > plan["threads"]
        if tokens >= 2 * gpu[1]:
            assert plan["splits"] == 1
    long = call(plans.sweep, "splits threads partial share", *gpu[:2], 4, 10**6)
    assert 4 * long["splits"] >= gpu[1]


def test_gradient_parts_cover_a_row(plans: ctypes.CDLL) -> None:
    for chunks in (0, 1, 2, 33, 1000, 1025, 65538):
        plan = call(plans.gradient, "threads parts", chunks)
        assert plan["parts"] >= 1 and plan["parts"] * plan["threads"] * 4 >= chunks
        assert (plan["parts"] - 1) * plan["threads"] * 4 < max(chunks, 1)


def test_rms_norm_rows_stay_in_registers(plans: ctypes.CDLL) -> None:
    for chunks, kept in itertools.product((1, 5, 8, 16, 72, 512, 1024, 2048), (4, 8, 32)):
        plan = call(plans.rms_norm, "group rows", chunks, kept)
        assert plan["group"] * plan["rows"] % 32 == 0
        assert plan["group"] * kept >= chunks or plan["group"] == 512
        assert plan["group"] * plan["rows"] <= 512
    # A head of 128 bfloat16 numbers takes eight threads.
    assert call(plans.rms_norm, "group rows", 16, 4) == {"group": 8, "rows": 32}
