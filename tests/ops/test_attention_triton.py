"""Attention in Triton: what its launchers decide, and bad input that a GPU cannot check."""

from collections.abc import Iterator

import pytest
import torch

import llama_fast
from llama_fast.reference import AttentionOptions
from tests.ops.conftest import DEVICES, in_force
from tests.ops.criterion import served_by

OP = "attention"
pytestmark = pytest.mark.skipif(
    "triton" not in llama_fast.backends().available[OP], reason="needs a GPU, or TRITON_INTERPRET=1"
)


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with in_force(OP, "triton"):
        yield


def surrounded_by_nan(t: torch.Tensor) -> torch.Tensor:
    """A copy of `t` with NaN before and after it in memory."""
    edge = torch.full((4096,), torch.nan, dtype=t.dtype)
    return torch.cat([edge, t.flatten(), edge])[4096:-4096].view(t.shape)


def test_few_heads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are ordered so that the heads in flight fit the cache: the order changes nothing."""
    from llama_fast.kernels import _attention_tuning

    q, k, v = (torch.randn(2, h, 40, 16, requires_grad=True) for h in (4, 2, 2))

    def results() -> tuple[torch.Tensor, ...]:
        out = llama_fast.attention(q, k, v, causal=True)
        return out, *torch.autograd.grad(out.square().sum(), (q, k, v))

    all_at_once = results()
    for size in (1, 2 * 40 * 32 * 4):  # one head of keys, two of them
        monkeypatch.setattr(_attention_tuning, "CACHE_BYTES", size)
        for a, b in zip(results(), all_at_once, strict=True):
            assert torch.equal(a, b)


def test_descriptors_and_pointers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that no descriptor supports are read through pointers, with the same result."""
    from llama_fast.kernels import _attention_tuning as tuning
    from llama_fast.kernels._attention_plan import supports_descriptor

    for table in (tuning._FORWARD, tuning._QUERY_GRAD, tuning._KEY_GRAD):
        monkeypatch.setitem(table, "plain", table["descriptors"])
    q, k, v = (torch.randn(2, h, 150, 40).bfloat16() for h in (4, 2, 2))
    odd = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in (q, k, v)]
    assert all(map(supports_descriptor, (q, k, v))) and not any(map(supports_descriptor, odd))
    results = []
    for tensors in ((q, k, v), odd):
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = llama_fast.attention(*leaves, causal=True)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), leaves)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("offsets_q", "offsets_k"),
    [
        ((0, 5, 60), (0, 7, 99)),
        ((0, -9, 12), (-5, 3, 12)),
        ((0, 9, 3, 12), (4, 12, 1, 10)),
        ((2**40, -(2**40), 7), (2**62, 1, 2)),
    ],
    ids=["beyond the end", "before the start", "not in order", "absurd"],
)
def test_bad_offsets_read_nothing_outside(
    offsets_q: tuple[int, ...], offsets_k: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU offsets are not checked: the result is undefined then, but memory is safe."""
    # Rows of no sequence are not written: let them be zero rather than what was in memory.
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    q, k, v, grad = (surrounded_by_nan(torch.randn(12, 2, 16)) for _ in range(4))
    options = AttentionOptions(
        cu_seqlens_q=torch.tensor(offsets_q),
        cu_seqlens_k=torch.tensor(offsets_k),
        causal=True,
        window_left=4,
        scale=0.25,
    )
    results = torch.ops.llama_fast.attention(q, k, v, *options)
    assert all(result[result != -torch.inf].isfinite().all() for result in results)
    inputs = (grad, None, q, k, v, *map(surrounded_by_nan, results))
    for grad in torch.ops.llama_fast.attention_backward(*inputs, *options, 7):
        assert grad.isfinite().all()


@pytest.mark.parametrize("window", ((2**62, 0), (-1, 2**62), (2**31, 2**31)), ids=str)
def test_absurd_windows(window: tuple[int, int]) -> None:
    q, k, v = (torch.randn(1, 2, 9, 16) for _ in range(3))
    out = llama_fast.attention(q, k, v, window=window)
    torch.testing.assert_close(out, served_by("reference", OP)(q, k, v, window=window))


@pytest.mark.parametrize("T", (256, 700, 1031))
def test_splits_of_the_keys_add_up(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query: the result is the same whether or not its keys are split."""
    from llama_fast.kernels import _attention_tuning

    q, k, v = (torch.randn(1, h, n, 32) for h, n in ((4, 1), (2, T), (2, T)))
    options = {"window": (600, 0), "sinks": torch.randn(4), "return_lse": True}
    split = llama_fast.attention(q, k, v, **options)
    monkeypatch.setattr(_attention_tuning, "key_splits", lambda *_: 1)
    for a, b in zip(split, llama_fast.attention(q, k, v, **options), strict=True):
        torch.testing.assert_close(a, b)


def test_runs_where_the_tensors_are() -> None:
    out = llama_fast.attention(*(torch.randn(1, 1, 4, 16) for _ in range(3)))
    assert out.device.type == DEVICES["triton"]
