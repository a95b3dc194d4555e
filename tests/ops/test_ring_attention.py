"""Attention over tokens spread over processes, against attention in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import llama_fast
from llama_fast.ops import Ring, ring_attention
from tests.ranks import FORKED, on_ranks

HEADS, KV_HEADS, D = 4, 2, 16
# Where the sequences of each case begin: one sequence over all pieces, borders of sequences on
# borders of pieces, empty sequences, some that begin and end within a piece, fewer tokens than
# pieces.
CASES = {
    "one": [0, 96],
    "aligned": [0, 24, 48, 96],
    "ragged": [0, 5, 6, 6, 50, 51, 97],
    "long behind short": [0, 1, 2, 3, 4, 83],
    "tiny": [0, 2, 3],
}


def make(offsets: list[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q, k, v and an upstream gradient, the same on every rank."""
    g = torch.Generator().manual_seed(len(offsets))
    n = offsets[-1]
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return tuple(torch.randn(n, h, D, generator=g, dtype=torch.float64).to(dtype) for h in heads)


def ring_results(rank: int, folder: Path) -> None:
    results = {}
    for name, offsets in CASES.items():
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            ring = Ring(dist.group.WORLD, torch.tensor(offsets))
            q, k, v, upstream = (t[ring.positions] for t in make(offsets, dtype))
            leaves = [t.requires_grad_() for t in (q, k, v)]
            out = ring_attention(*leaves, ring)
            grads = torch.autograd.grad(out, leaves, upstream)
            results[name, dtype] = (ring.positions, out.detach(), *grads)
    torch.save(results, folder / f"{rank}.pt")


def one_process(offsets: list[int], dtype: torch.dtype) -> list[Tensor]:
    q, k, v, upstream = make(offsets, dtype)
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = llama_fast.attention(*leaves, causal=True, cu_seqlens_q=torch.tensor(offsets))
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


@pytest.mark.parametrize("world", (2, 3, 4))
def test_equals_one_process(world: int, tmp_path: Path) -> None:
    """float64 to rounding; else an error against float64 at most twice that of one process."""
    on_ranks(world, ring_results, tmp_path, method=FORKED)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    for name, dtype in ranks[0]:
        positions, *parts = zip(*(results[name, dtype] for results in ranks), strict=True)
        order = torch.cat(positions).argsort()
        assert torch.equal(torch.cat(positions)[order], torch.arange(CASES[name][-1]))
        ours = [torch.cat(part)[order].double() for part in parts]
        exact = [t.double() for t in one_process(CASES[name], torch.float64)]
        alone = [t.double() for t in one_process(CASES[name], dtype)]
        for result, single, truth in zip(ours, alone, exact, strict=True):
            error = (result - truth).norm()
            if dtype == torch.float64:
                assert error <= 1e-13 * truth.norm(), name
            else:
                # Twice: a block's output is rounded before it is merged, and once more after.
                assert error <= 2 * (single - truth).norm(), (name, dtype)


def bad_input(rank: int, folder: Path) -> None:
    ring = Ring(dist.group.WORLD, torch.tensor([0, 8]))
    good = torch.randn(4, 2, 8)
    with pytest.raises(ValueError, match=r"k: expected shape .* n = 4 tokens .* got \(3, 2, 8\)"):
        ring_attention(good, good[:3], good, ring)
    with (
        llama_fast.use_backend(attention="reference"),
        pytest.raises(ValueError, match="backend: expected a compiled attention kernel"),
    ):
        ring_attention(good, good, good, ring)


def test_bad_input(tmp_path: Path) -> None:
    on_ranks(2, bad_input, tmp_path, method=FORKED)
