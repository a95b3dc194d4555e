"""Linear cross-entropy with the vocabulary spread over two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import llama_fast
from tests.ranks import FORKED, on_ranks

OP = "linear_cross_entropy"
WORLD = 2
E, V, N = 12, 34, 25
SHARED = 7  # results that every rank has in full: loss, statistics, the gradients of input
ALL = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "everything": {"label_smoothing": 0.1, "softcap": 3.0, "z_loss": 1e-2, "shift": True},
}


def make(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Input, weight, bias, target and class weights: the same on every rank."""
    torch.manual_seed(3)
    target = torch.randint(0, V, (N,))
    target[::5] = -100
    shapes = ((N, E), (V, E), (V,))
    return (*(torch.randn(s).to(dtype) for s in shapes), target, torch.rand(V) + 0.1)


def results(x: Any, w: Any, b: Any, target: Any, weight: Any, **options: Any) -> list[Any]:
    """Loss, statistics and gradients of one call: of the loss and of lse."""
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    loss, stats = llama_fast.linear_cross_entropy(
        leaves[0], leaves[1], target, linear_bias=leaves[2], weight=weight, return_stats=True,
        **options,
    )  # fmt: skip
    grads = {}
    for name, output in {"loss": loss, "lse": stats.lse}.items():
        upstream = torch.linspace(0.5, 1.5, output.numel()).view(output.shape).to(output.dtype)
        grads[name] = torch.autograd.grad(output, leaves, upstream, retain_graph=True)
    inputs, weights, biases = zip(*grads.values(), strict=True)
    return [loss.detach(), stats.lse.detach(), *stats[1:], *inputs, *weights, *biases]


def worker(rank: int, folder: Path, backend: str) -> None:
    found = {}
    mine = slice(rank * V // WORLD, (rank + 1) * V // WORLD)
    with llama_fast.use_backend(linear_cross_entropy=backend):
        for dtype in (torch.float64, torch.bfloat16):
            x, w, b, target, weight = make(dtype)
            for name, options in ALL.items():
                found[name, dtype] = results(
                    x, w[mine], b[mine], target, weight, process_group=dist.group.WORLD, **options
                )
        if backend == "chunked":
            x, w, b, target, weight = make(torch.float32)
            uneven = w[: 20 if rank == 0 else 14]
            with pytest.raises(
                ValueError, match=r"linear_weight: .* on every rank, got \[20, 14\]"
            ):
                llama_fast.linear_cross_entropy(
                    x, uneven, target.clamp(max=3), process_group=dist.group.WORLD
                )
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.parametrize("name", ("chunked", "reference"))
def test_two_ranks_equal_one_process(name: str, tmp_path: Path) -> None:
    """Loss, statistics and the gradient of input on every rank; of the weight, each its rows."""
    on_ranks(WORLD, worker, tmp_path, name, method=FORKED)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
    for (case, dtype), first in ranks[0].items():
        second = ranks[1][case, dtype]
        with llama_fast.use_backend(linear_cross_entropy="chunked"):
            alone = results(*make(dtype), **ALL[case])
        merged = [
            *first[:SHARED],
            *(torch.cat(halves) for halves in zip(first[SHARED:], second[SHARED:], strict=True)),
        ]
        for a, b in zip(first[:SHARED], second[:SHARED], strict=True):
            assert torch.equal(a, b), f"{case}: the ranks differ"
        for ours, expected in zip(merged, alone, strict=True):
            torch.testing.assert_close(ours, expected, msg=lambda m, c=case: f"{c}: {m}")
