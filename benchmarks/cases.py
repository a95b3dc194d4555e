"""What is measured: shapes that a Llama-style model meets, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.peers import Peer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One op on one shape; `sizes` as the op's docstring names them."""

    op: str
    shape: str
    sizes: tuple[int, ...]
    dtype: str

    def step(self, peer: Peer, backward: bool = True) -> Callable[[], None]:
        """A function that runs the peer once, forward and (by default) backward."""
        torch.manual_seed(0)
        return (_attention if self.op == "attention" else _cross_entropy)(self, peer, backward)


def _attention(case: Case, peer: Peer, backward: bool) -> Callable[[], None]:
    B, H, K, S, D = case.sizes
    dtype = DTYPES[case.dtype]
    q = torch.randn(B, H, S, D).to(dtype).requires_grad_(backward)
    k, v = (torch.randn(B, K, S, D).to(dtype).requires_grad_(backward) for _ in range(2))
    grad = torch.randn(B, H, S, D).to(dtype)

    def run() -> None:
        out = peer.run(q, k, v)
        if backward:
            torch.autograd.grad(out, (q, k, v), grad)

    return run


def _cross_entropy(case: Case, peer: Peer, backward: bool) -> Callable[[], None]:
    N, V = case.sizes
    logits = torch.randn(N, V).to(DTYPES[case.dtype])
    target = torch.randint(V, (N,))

    def run() -> None:
        leaf = logits.detach().requires_grad_(backward)
        # An in-place op may not overwrite a leaf; a view stands for the head that made the logits.
        z = _Computed.apply(leaf) if backward else leaf
        loss = peer.run(z, target)
        if backward:
            torch.autograd.grad(loss, leaf)

    return run


class _Computed(torch.autograd.Function):
    """The identity as an operation: its output is no leaf, and costs nothing."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.detach()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad


CASES = tuple(
    Case(op, shape, sizes, dtype)
    for op, shape, sizes in (
        ("attention", "S=2048 D=64 H=8", (1, 8, 8, 2048, 64)),  # a small model's layer
        ("attention", "S=2048 D=128 H=8", (1, 8, 8, 2048, 128)),  # the head size of Llama 2 and 3
        ("attention", "B=2 S=512 D=64 H=9 K=3", (2, 9, 3, 512, 64)),  # SmolLM2-135M, grouped heads
        ("cross_entropy", "N=2048 V=32000", (2048, 32000)),  # the vocabulary of Llama 2
        ("cross_entropy", "N=512 V=128256", (512, 128256)),  # the vocabulary of Llama 3
    )
    for dtype in DTYPES
)


def cases(op: str) -> list[Case]:
    """The cases of one op."""
    return [case for case in CASES if case.op == op]
