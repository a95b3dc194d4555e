"""The emulation of a GPU that the CUDA kernels are tested with: right, and hard to please."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch

from tests.cuda.library import compiled


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compiled("emulation.cpp", tmp_path_factory.mktemp("emulation"), "emulation.cpp")
    library.failure.restype = ctypes.c_char_p
    return library


def pointers(*tensors: torch.Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(t.data_ptr()) for t in tensors]


@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_matrix_fragments(emulation: ctypes.CDLL, dtype: torch.dtype, transposed: bool) -> None:
    """ldmatrix and mma agree with each other and with a matrix product."""
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    out = torch.empty(16, 8)
    name = "multiply_bf16" if dtype == torch.bfloat16 else "multiply_f16"
    right = b if transposed else b.T.contiguous()
    getattr(emulation, name)(*pointers(a, right, out), ctypes.c_bool(transposed))
    torch.testing.assert_close(out, (a.double() @ b.double() + 1).float())


def test_conversions(emulation: ctypes.CDLL) -> None:
    """Rounded as torch rounds: to even, to subnormal numbers, to infinity."""
    special = [0.0, -0.0, 1e-8, -6e-8, 6.1e-5, 6.09e-5, 65504, 65519.9, 65520, 1e38, -3.4e38,
               torch.inf, -torch.inf, torch.nan, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8]  # fmt: skip
    for seed in range(50):
        torch.manual_seed(seed)
        values = torch.randn(32) * 10.0 ** torch.randint(-9, 6, (32,))
        if seed == 0:
            values[: len(special)] = torch.tensor(special)
        as_bf16 = torch.empty(32, dtype=torch.bfloat16)
        as_f16, wide = torch.empty(32, dtype=torch.float16), torch.empty(32)
        emulation.run_convert(*pointers(values, as_bf16, as_f16, wide))
        for ours, torchs in ((as_bf16, values.bfloat16()), (as_f16, values.half())):
            torch.testing.assert_close(ours, torchs, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(ours.signbit() & (ours == 0), torchs.signbit() & (torchs == 0))
        torch.testing.assert_close(wide, as_f16.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("order", ("", "reverse", "shuffle"))
def test_clusters(emulation: ctypes.CDLL, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_FAST_EMULATION_ORDER", order)
    out = torch.empty(8, dtype=torch.int32)
    emulation.run_neighbour(*pointers(out), ctypes.c_bool(True))
    assert out.tolist() == [1, 2, 3, 0, 5, 6, 7, 4]
    emulation.run_neighbour(*pointers(out), ctypes.c_bool(False))
    assert out.tolist() != [1, 2, 3, 0, 5, 6, 7, 4]


def test_a_missing_barrier_shows(emulation: ctypes.CDLL) -> None:
    values, out = torch.randn(128), torch.empty(128)
    emulation.run_reversed(*pointers(values, out), ctypes.c_bool(True))
    assert torch.equal(out, values.flip(0))
    emulation.run_reversed(*pointers(values, out), ctypes.c_bool(False))
    assert out.isnan().any()


def test_a_missing_wait_shows(emulation: ctypes.CDLL) -> None:
    values, out = torch.randn(128), torch.empty(32 + 128)
    emulation.run_unfinished(*pointers(values, out), ctypes.c_bool(True))
    assert torch.equal(out, torch.cat([values[::4], values]))
    emulation.run_unfinished(*pointers(values, out), ctypes.c_bool(False))
    assert out[:32].isnan().all()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent", "kernel divergent, block .0, 0, 0.: threads wait for others that never come"),
        ("mixed", "kernel mixed, .*: threads of a warp are in different collectives"),
        ("overrun", "kernel overrun, .*: wrote past the end of shared memory"),
        ("misaligned", "kernel misaligned, .*: an access of 16 bytes at another address"),
        ("threads", "kernel threads: 48 threads"),
        ("shared", "kernel shared: 1048576 bytes of shared memory"),
        ("cluster", "kernel cluster: clusters of 4"),
    ],
)
def test_wrong_kernels_are_errors(emulation: ctypes.CDLL, kernel: str, message: str) -> None:
    found = emulation.failure(kernel.encode()).decode()
    assert re.search(message, found), found
    out = torch.empty(8, dtype=torch.int32)  # what comes next is not disturbed
    emulation.run_neighbour(*pointers(out), ctypes.c_bool(True))
    assert out.tolist() == [1, 2, 3, 0, 5, 6, 7, 4]
