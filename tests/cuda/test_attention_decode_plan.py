"""How the decoding kernel's work is cut up: csrc/cuda/attention_decode_plan.h, in plain C++."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import pytest
import torch

from llama_fast.ops.attention_decode import _cuda_refusal
from tests.cuda.library import compiled

H100, A100, TINY = (132, 227 << 10), (108, 163 << 10), (4, 99 << 10)
Plan = Callable[..., tuple[int, int, int]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled("attention_decode_plan.cpp", tmp_path_factory.mktemp("plan"))


@pytest.fixture
def plan(library: ctypes.CDLL) -> Plan:
    """plan(gpu, head size, sequences times key heads, rows, keys) -> (tiles, row blocks, shares)"""

    def call(gpu: tuple[int, int], *sizes: int) -> tuple[int, int, int]:
        out = (ctypes.c_int64 * 3)()
        library.plan(gpu[0], ctypes.c_int64(gpu[1]), *map(ctypes.c_int64, sizes), out)
        return out[0], out[1], out[2]

    return call


def test_one_sequence_is_shared_by_the_whole_gpu(plan: Plan) -> None:
    """Llama 3 8B, one user: 8 key heads, two blocks at once on each of 132 processors."""
    *_, shares = plan(H100, 128, 8, 4, 8192)
    assert 0.9 * 264 <= 8 * shares <= 264 * 4
    *_, more = plan(H100, 128, 8, 4, 131072)
    assert 0.9 * 264 <= 8 * more <= 264 * 4


def test_a_share_has_work_for_every_warp(plan: Plan) -> None:
    for keys in (0, 1, 63, 64, 65, 1000, 8192):
        *_, shares = plan(H100, 128, 1, 1, keys)
        assert 1 <= shares <= max(1, -(-keys // 64))


def test_many_sequences_are_not_cut(plan: Plan) -> None:
    assert plan(H100, 128, 64 * 8, 4, 1024)[2] == 1
    assert plan(H100, 64, 2000, 4, 8192)[2] == 1


def test_a_wave_that_is_nearly_empty_is_filled(plan: Plan) -> None:
    """A few blocks more than fit at once would leave the GPU idle for half of the time."""
    *_, shares = plan(H100, 128, 272, 4, 8192)

    def used(shares: int) -> float:
        blocks = 272 * shares
        return blocks / (-(-blocks // 264) * 264)

    assert used(1) < 0.52 and used(shares) > 0.75
    assert used(shares) >= 0.9 * max(used(s) for s in range(1, 5))


def test_a_long_cache_is_cut_for_the_longest_sequence(plan: Plan) -> None:
    """Lengths are unknown: one may fill what it can hold while the others are short."""
    assert plan(H100, 128, 4096, 4, 131072)[2] == 8


@pytest.mark.parametrize(
    ("size", "rows", "tiles", "blocks"),
    [
        (64, 1, 1, 1), (64, 16, 1, 1), (64, 17, 2, 1), (64, 33, 2, 2), (128, 32, 2, 1),
        (128, 64, 2, 2), (256, 16, 1, 1), (256, 17, 1, 2), (256, 40, 1, 3),
    ],
)  # fmt: skip
def test_rows_in_tiles(plan: Plan, size: int, rows: int, tiles: int, blocks: int) -> None:
    assert plan(H100, size, 8, rows, 4096)[:2] == (tiles, blocks)
    assert blocks * tiles * 16 >= rows


def test_shared_memory_fits_every_gpu(library: ctypes.CDLL, plan: Plan) -> None:
    library.shared_bytes.restype = ctypes.c_int64
    for size in (64, 128, 256):
        for tiles in (1, 2):
            assert library.shared_bytes(ctypes.c_int64(size), tiles) <= A100[1]
    # A GPU whose processors hold one block, or not even that, has a plan all the same.
    for gpu in (A100, TINY):
        assert plan(gpu, 256, 8, 4, 8192)[2] >= 1


def test_refusals(library: ctypes.CDLL) -> None:
    library.refusal.restype = ctypes.c_char_p
    f64, f32, bf16, f16 = range(4)

    def refusal(dtype: int, size: int, values: int, aligned: bool = True) -> bytes | None:
        return library.refusal(dtype, ctypes.c_int64(size), ctypes.c_int64(values), aligned)

    for dtype in (bf16, f16):
        for size in (64, 128, 256):
            assert refusal(dtype, size, size) is None
    assert b"bfloat16 or float16" in (refusal(f32, 64, 64) or b"")
    assert b"bfloat16 or float16" in (refusal(f64, 64, 64) or b"")
    assert b"64, 128 or 256" in (refusal(bf16, 80, 80) or b"")
    assert b"values of the head size of the keys" in (refusal(bf16, 64, 128) or b"")
    assert b"multiples of 16 bytes" in (refusal(bf16, 64, 64, False) or b"")


def test_python_refuses_what_the_kernel_refuses(library: ctypes.CDLL) -> None:
    """The backend "auto" asks the Python rule; the operator asks the C++ one."""
    library.refusal.restype = ctypes.c_char_p
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    sizes = (8, 64, 80, 128, 256, 512)
    for (number, dtype), size, values, aligned in itertools.product(
        enumerate(dtypes), sizes, sizes, (True, False)
    ):
        caches = [torch.zeros(2, 3, 16, n + 8, dtype=dtype)[..., :n] for n in (size, values)]
        if not aligned:
            caches[0] = torch.zeros(2, 3, 16, size + 1, dtype=dtype)[..., :size]
        in_python = _cuda_refusal(caches[0].new_empty(2, 3, 1, size), *caches)
        sizes_in = (ctypes.c_int64(size), ctypes.c_int64(values))
        in_cpp = library.refusal(number, *sizes_in, aligned)
        assert (in_python is None) == (in_cpp is None), (dtype, size, values, aligned)
