"""Causal attention over sequences that are spread over several processes (context parallelism).

Each rank holds two pieces of the tokens. Keys and values travel around the ring of ranks; what
they give is merged by the log of the softmax's denominator, so nothing as long as the whole is ever
held by one rank. Liu et al. 2023, "Ring Attention" (arXiv:2310.01889); that each rank takes a piece
from the front and one from the back, which evens out the work, is the Llama 3 paper's
(arXiv:2407.21783, section 3.3.2).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llama_fast.ops._autograd import with_backend
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.current import current
from llama_fast.reference import AttentionOptions
from llama_fast.reference._dtypes import wide_dtype


class Block(NamedTuple):
    """Queries of this rank beside keys that are at it now: offsets into the two."""

    q: slice
    k: slice
    cu_seqlens: Tensor | None  # of queries and keys alike, which are the same tokens; else all see


class Ring:
    """How N tokens are spread over the ranks of a group, and what each has to do with the others'.

    The tokens are cut into 2W pieces for W ranks; rank r holds piece r and piece 2W - 1 - r.

    Args:
        group: the ranks. Each of them makes a Ring of the same `cu_seqlens`.
        cu_seqlens: (sequences + 1,) integers, 0 to N: where each sequence begins, and N.

    Attributes:
        positions: int64, which of the N tokens this rank holds, in the order it holds them.

    Example:
        >>> ring = Ring(group, cu_seqlens)
        >>> mine = tokens[:, ring.positions]
    """

    def __init__(self, group: dist.ProcessGroup, cu_seqlens: Tensor) -> None:
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self._offsets: list[int] = cu_seqlens.tolist()
        self._device = cu_seqlens.device
        total = self._offsets[-1]
        self._cuts = [total * i // (2 * self.size) for i in range(2 * self.size + 1)]
        self.positions = torch.cat(
            [torch.arange(*self._piece(i), device=self._device) for i in self._pieces(self.rank)]
        )
        self.blocks = [self._blocks_with(source) for source in range(self.size)]

    def _pieces(self, rank: int) -> tuple[int, int]:
        return rank, 2 * self.size - 1 - rank

    def _piece(self, i: int) -> tuple[int, int]:
        return self._cuts[i], self._cuts[i + 1]

    def held_by(self, rank: int) -> int:
        """The number of tokens of a rank."""
        return sum(b - a for a, b in map(self._piece, self._pieces(rank)))

    def _blocks_with(self, source: int) -> list[Block]:
        """The blocks of the score matrix between this rank's queries and the keys of `source`."""
        found, q_base = [], 0
        for i in self._pieces(self.rank):
            q_first, q_end = self._piece(i)
            k_base = 0
            for j in self._pieces(source):
                k_first, k_end = self._piece(j)
                if j == i and q_end > q_first:
                    rows = slice(q_base, q_base + q_end - q_first)
                    found.append(Block(rows, rows, self._within(q_first, q_end)))
                elif j < i and q_end > q_first and k_end > k_first:
                    # All pieces between the two are whole, so the one sequence that has tokens in
                    # both is that of the first query.
                    which = bisect_right(self._offsets, q_first) - 1
                    begin, end = self._offsets[which], self._offsets[which + 1]
                    if begin < k_end:
                        q = slice(q_base, q_base + min(end, q_end) - q_first)
                        k = slice(k_base + max(begin - k_first, 0), k_base + k_end - k_first)
                        found.append(Block(q, k, None))
                k_base += k_end - k_first
            q_base += q_end - q_first
        return found

    def _within(self, first: int, end: int) -> Tensor:
        """Offsets of the sequences, or parts of them, in one piece."""
        inside = [o - first for o in self._offsets if first < o < end]
        return torch.tensor([0, *inside, end - first], dtype=torch.int32, device=self._device)


def ring_attention(q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
    """Causal attention of packed sequences; every rank of the ring calls it with its own tokens.

    Args:
        q: (n,H,D), the n tokens of `ring.positions`; dtype of `k`.
        k, v: (n,K,D), H a multiple of K.
        ring: says who holds what.

    Returns:
        (n,H,D): what `attention(..., causal=True, cu_seqlens_q=cu_seqlens)` over all N tokens
        gives for these. Differentiable once.

    Raises:
        ValueError: q, k or v does not have n rows; the op has no compiled kernel here.
    """
    rows = ring.held_by(ring.rank)
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != 3 or t.shape[0] != rows:
            raise ValueError(
                f"{name}: expected shape (n,heads,D) with the ring's n = {rows} tokens of this "
                f"rank, got {tuple(t.shape)}"
            )
    if k.shape != v.shape:
        raise ValueError(f"v: expected the shape of k, {tuple(k.shape)}, got {tuple(v.shape)}")
    if (backend := choose("attention", q)) not in ("cpu", "triton"):
        raise ValueError(
            f"backend: expected a compiled attention kernel for context parallelism, got {backend}"
        )
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        q, k, v = (t.to(torch.get_autocast_dtype(device)) for t in (q, k, v))
    out: Tensor = _RingAttention.apply(q, k, v, ring)
    return out


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
        wide = wide_dtype(q.dtype)
        out = torch.zeros(q.shape, dtype=wide, device=q.device)
        # In float64: the sum of two exponentials in float32 would lose what lse_low is there for.
        lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float64, device=q.device)
        kv = torch.stack((k, v))
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            last = step == ring.size - 1
            coming = None if last else _Passing(ring, kv, held=source)
            for block in ring.blocks[source]:
                part, *logs = torch.ops.llama_fast.attention(
                    q[block.q], kv[0, block.k], kv[1, block.k], *_options(q, block)
                )
                _merge(out[block.q], lse[block.q], part, logs[0].double() + logs[1])
            if coming is not None:
                kv = coming.wait()
        out = out.to(q.dtype)
        high = lse.to(wide)
        ctx.save_for_backward(q, k, v, out, high, (lse - high).to(wide))
        ctx.backends = current()
        ctx.ring = ring
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    @with_backend
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        q, k, v, out, high, low = ctx.saved_tensors
        ring = ctx.ring
        grad_q = torch.zeros(q.shape, dtype=high.dtype, device=q.device)
        kv = torch.stack((k, v))
        grad_kv = torch.zeros(kv.shape, dtype=high.dtype, device=q.device)
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            last = step == ring.size - 1
            coming = None if last else _Passing(ring, kv, held=source)
            for block in ring.blocks[source]:
                # With lse, out and grad_out of the whole row, what comes is the share of this
                # block in the gradients (Dao et al. 2022, appendix B.2).
                rows = [t[block.q] for t in (out, high, low)]
                made = torch.ops.llama_fast.attention_backward(
                    grad_out[block.q], None, q[block.q], kv[0, block.k], kv[1, block.k], *rows,
                    *_options(q, block), 0b111,
                )  # fmt: skip
                grad_q[block.q] += made[0]
                grad_kv[0, block.k] += made[1]
                grad_kv[1, block.k] += made[2]
            if coming is not None:
                kv = coming.wait()
            # They follow the keys they belong to, and are home after the last step.
            if ring.size > 1:
                grad_kv = _Passing(ring, grad_kv, held=source).wait()
        return grad_q.to(q.dtype), grad_kv[0].to(k.dtype), grad_kv[1].to(v.dtype), None


def _options(q: Tensor, block: Block) -> AttentionOptions:
    """The options of the operator for one block."""
    if block.cu_seqlens is not None:
        cu_q = cu_k = block.cu_seqlens
    else:
        cu_q, cu_k = (
            torch.tensor([0, s.stop - s.start], dtype=torch.int32, device=q.device)
            for s in (block.q, block.k)
        )
    return AttentionOptions(
        cu_seqlens_q=cu_q,
        cu_seqlens_k=cu_k,
        causal=block.cu_seqlens is not None,
        scale=1 / math.sqrt(q.shape[-1]),
    )


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add a block's output (n,H,D), with its lse (n,H), to those of the keys before, in place."""
    both = torch.logaddexp(lse, part_lse)
    out.mul_((lse - both).exp().unsqueeze(-1).to(out.dtype))
    out.add_(part.to(out.dtype) * (part_lse - both).exp().unsqueeze(-1).to(out.dtype))
    lse.copy_(both)


class _Passing:
    """`tensor` (2,n,K,D), of the tokens of rank `held`, on its way to the next rank of the ring."""

    def __init__(self, ring: Ring, tensor: Tensor, held: int) -> None:
        rows = ring.held_by((held - 1) % ring.size)
        self._coming = tensor.new_empty(2, rows, *tensor.shape[2:])
        self._sent = tensor  # kept until it has left
        following = dist.get_global_rank(ring.group, (ring.rank + 1) % ring.size)
        preceding = dist.get_global_rank(ring.group, (ring.rank - 1) % ring.size)
        operations = [
            dist.P2POp(dist.isend, self._sent, following, ring.group),
            dist.P2POp(dist.irecv, self._coming, preceding, ring.group),
        ]
        self._requests = dist.batch_isend_irecv(operations)

    def wait(self) -> Tensor:
        """What the rank before has sent."""
        for request in self._requests:
            request.wait()
        return self._coming
