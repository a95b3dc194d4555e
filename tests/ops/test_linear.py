"""The linear map of a few rows against float64, beside torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llama_fast.ops.backends import library
from llama_fast.ops.linear import MAX_ROWS, linear

pytestmark = pytest.mark.skipif(
    library.missing_reason is not None, reason="the compiled library is not there"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


# Whole vectors, a tail, less than a vector, one number; more rows than a thread takes.
@pytest.mark.parametrize("shape", [(577, 576), (64, 333), (7, 5), (1, 1), (3001, 64)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 16, 17, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_further_from_float64_than_torch(
    dtype: torch.dtype, rows: int, shape: tuple[int, int]
) -> None:
    weight = random(*shape, dtype=dtype)
    bias, x = random(shape[0], dtype=dtype, seed=1), random(rows, shape[1], dtype=dtype, seed=2)
    for b in (None, bias):
        truth = F.linear(x.double(), weight.double(), None if b is None else b.double())
        errors = [
            ((out.double() - truth).norm() / truth.norm()).item()
            for out in (torch.ops.llama_fast.linear(x, weight, b), F.linear(x, weight, b))
        ]
        assert errors[0] <= errors[1] + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_and_shapes(dtype: torch.dtype) -> None:
    wide = random(40, 96, dtype=dtype)
    x = random(2, 48, 1, dtype=dtype, seed=1).transpose(1, 2)
    for weight in (wide[:, :48], wide[:, ::2], wide.T[:48].T):
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
    assert linear(x[:0], wide[:, :48]).shape == (0, 1, 40)
    assert linear(x, wide[:0, :48]).shape == (2, 1, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads_and_rows(dtype: torch.dtype) -> None:
    weight, x = random(515, 257, dtype=dtype), random(64, 257, dtype=dtype, seed=1)
    before, results = torch.get_num_threads(), []
    try:
        for threads, rows in ((1, 64), (2, 64), (3, 5), (2, 1), (1, 2), (1, 33)):
            torch.set_num_threads(threads)
            parts = [torch.ops.llama_fast.linear(part, weight, None) for part in x.split(rows)]
            results.append(torch.cat(parts))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_few_rows_are_ours_and_many_torchs() -> None:
    for dtype, max_rows in MAX_ROWS.items():
        assert 4 <= max_rows <= 64
        weight, x = random(64, 33, dtype=dtype), random(max_rows + 1, 33, dtype=dtype, seed=1)
        ours = torch.ops.llama_fast.linear(x[:max_rows], weight, None)
        assert torch.equal(linear(x[:max_rows], weight), ours)
        assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_nothing_outside_the_tensors_is_read() -> None:
    """NaN all around, which a masked product would spread."""
    for dtype in DTYPES:
        wide, x = torch.full((50, 80), float("nan"), dtype=dtype), random(3, 50, dtype=dtype)
        weight = wide[3:40, 7:57]
        weight.copy_(random(37, 50, dtype=dtype, seed=1))
        assert not torch.ops.llama_fast.linear(x, weight, None).isnan().any()


def test_gradients_and_autocast_are_torchs() -> None:
    weight = random(9, 8, dtype=torch.float32).requires_grad_()
    x = random(2, 8, dtype=torch.float32, seed=1).requires_grad_()
    got = torch.autograd.grad(linear(x, weight).sum(), (x, weight))
    want = torch.autograd.grad(F.linear(x, weight).sum(), (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


def test_errors_are_torchs() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        linear(torch.zeros(1, 7), torch.zeros(9, 8))
    with pytest.raises(RuntimeError, match=r"expected input \(...,E\) and weight \(V,E\)"):
        torch.ops.llama_fast.linear(torch.zeros(1, 7), torch.zeros(9, 8), None)


def test_opcheck() -> None:
    weight, x = random(9, 8, dtype=torch.float32), random(2, 3, 8, dtype=torch.float32, seed=1)
    torch.library.opcheck(torch.ops.llama_fast.linear.default, (x, weight, weight[:, 0]))
