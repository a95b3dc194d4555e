"""Causal attention over sequences that are sharded over several processes (context parallelism).

Each rank holds two pieces of the tokens. Keys and values are passed around the ring of ranks, and
partial results are merged by their log-sum-exps, so no rank ever holds tensors of the full length.
Liu et al. 2023, "Ring Attention" (arXiv:2310.01889). Each rank takes a piece from the front and one
from the back, which balances the work, as in the Llama 3 paper (arXiv:2407.21783, section 3.3.2).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llama_fast.ops._autocast import autocast_dtype
from llama_fast.ops._autograd import with_backend
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.backends.current import current
from llama_fast.reference import AttentionOptions
from llama_fast.reference._dtypes import wide_dtype


class ScoreBlock(NamedTuple):
    """A block of the score matrix: slices of this rank's queries and of its current keys."""

    q: slice
    k: slice
    cu_seqlens: Tensor | None  # if queries and keys are the same tokens; None: all keys are seen


class Ring:
    """How N tokens of packed sequences are sharded over the ranks of a group.

    The tokens are divided into 2W pieces for W ranks; rank r holds the pieces r and 2W - 1 - r.

    Args:
        group: the process group. Every rank of it creates a Ring with the same `cu_seqlens`.
        cu_seqlens: integers (sequences + 1,), offsets of the sequences, from 0 to N.

    Attributes:
        positions: int64 (n,), indices of the tokens that this rank holds, in the order it holds
            them.

    Example:
        >>> ring = Ring(group, cu_seqlens)
        >>> local_tokens = tokens[:, ring.positions]
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

    def num_tokens(self, rank: int) -> int:
        """The number of tokens that a rank holds."""
        return sum(b - a for a, b in map(self._piece, self._pieces(rank)))

    def _blocks_with(self, source: int) -> list[ScoreBlock]:
        """The blocks of the score matrix between this rank's queries and the keys of `source`."""
        blocks, q_base = [], 0
        for i in self._pieces(self.rank):
            q_first, q_end = self._piece(i)
            k_base = 0
            for j in self._pieces(source):
                k_first, k_end = self._piece(j)
                if j == i and q_end > q_first:
                    rows = slice(q_base, q_base + q_end - q_first)
                    blocks.append(ScoreBlock(rows, rows, self._within(q_first, q_end)))
                elif j < i and q_end > q_first and k_end > k_first:
                    # Sequences are contiguous, so only that of the first query can have tokens in
                    # both pieces.
                    sequence = bisect_right(self._offsets, q_first) - 1
                    begin, end = self._offsets[sequence], self._offsets[sequence + 1]
                    if begin < k_end:
                        q = slice(q_base, q_base + min(end, q_end) - q_first)
                        k = slice(k_base + max(begin - k_first, 0), k_base + k_end - k_first)
                        blocks.append(ScoreBlock(q, k, None))
                k_base += k_end - k_first
            q_base += q_end - q_first
        return blocks

    def _within(self, first: int, end: int) -> Tensor:
        """Offsets of the sequences and parts of sequences within one piece."""
        inside = [o - first for o in self._offsets if first < o < end]
        return torch.tensor([0, *inside, end - first], dtype=torch.int32, device=self._device)


def ring_attention(q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
    """Causal attention of packed sequences that are sharded over a ring of ranks.

    Every rank calls it with its own tokens.

    Args:
        q: (n,H,D), the queries of the n tokens of `ring.positions`; float64, float32, bfloat16 or
            float16.
        k: (n,K,D), H a multiple of K; dtype of `q`.
        v: (n,K,D), dtype of `q`.
        ring: which rank holds which tokens.

    Returns:
        (n,H,D): this rank's rows of `attention(..., causal=True, cu_seqlens_q=cu_seqlens)` over all
        N tokens. First derivatives only.

    Raises:
        ValueError: q, k or v does not have n rows, or attention has no compiled kernel on this
            machine.
    """
    rows = ring.num_tokens(ring.rank)
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
    dtype = autocast_dtype(q.device.type)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    out: Tensor = _RingAttention.apply(q, k, v, ring)
    return out


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
        wide = wide_dtype(q.dtype)
        out = torch.zeros(q.shape, dtype=wide, device=q.device)
        # float64 keeps the precision of lse + lse_low when results are merged.
        lse = torch.full(q.shape[:2], -math.inf, dtype=torch.float64, device=q.device)
        kv = torch.stack((k, v))
        for step in range(ring.size):
            source = (ring.rank - step) % ring.size
            last = step == ring.size - 1
            transfer = None if last else _Transfer(ring, kv, owner=source)
            for block in ring.blocks[source]:
                part, *logs = torch.ops.llama_fast.attention(
                    q[block.q], kv[0, block.k], kv[1, block.k], *_options(q, block)
                )
                _merge(out[block.q], lse[block.q], part, logs[0].double() + logs[1])
            if transfer is not None:
                kv = transfer.wait()
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
            transfer = None if last else _Transfer(ring, kv, owner=source)
            for block in ring.blocks[source]:
                # With lse, out and grad_out of whole rows, the result is this block's part of the
                # gradients (Dao et al. 2022, appendix B.2).
                rows = [t[block.q] for t in (out, high, low)]
                grads = torch.ops.llama_fast.attention_backward(
                    grad_out[block.q], None, q[block.q], kv[0, block.k], kv[1, block.k], *rows,
                    *_options(q, block), 0b111,
                )  # fmt: skip
                grad_q[block.q] += grads[0]
                grad_kv[0, block.k] += grads[1]
                grad_kv[1, block.k] += grads[2]
            if transfer is not None:
                kv = transfer.wait()
            # The gradients travel with their keys, and reach their own rank after the last step.
            if ring.size > 1:
                grad_kv = _Transfer(ring, grad_kv, owner=source).wait()
        return grad_q.to(q.dtype), grad_kv[0].to(k.dtype), grad_kv[1].to(v.dtype), None


def _options(q: Tensor, block: ScoreBlock) -> AttentionOptions:
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
    """Merge a block's output (n,H,D) and lse (n,H) into those of earlier blocks, in place."""
    merged = torch.logaddexp(lse, part_lse)
    out.mul_((lse - merged).exp().unsqueeze(-1).to(out.dtype))
    out.add_(part.to(out.dtype) * (part_lse - merged).exp().unsqueeze(-1).to(out.dtype))
    lse.copy_(merged)


class _Transfer:
    """Sends `tensor` (2,n,K,D), which belongs to the tokens of rank `owner`, to the next rank.

    Receives the corresponding tensor from the previous rank.
    """

    def __init__(self, ring: Ring, tensor: Tensor, owner: int) -> None:
        rows = ring.num_tokens((owner - 1) % ring.size)
        self._received = tensor.new_empty(2, rows, *tensor.shape[2:])
        self._sent = tensor  # must live until it is sent
        following = dist.get_global_rank(ring.group, (ring.rank + 1) % ring.size)
        preceding = dist.get_global_rank(ring.group, (ring.rank - 1) % ring.size)
        operations = [
            dist.P2POp(dist.isend, self._sent, following, ring.group),
            dist.P2POp(dist.irecv, self._received, preceding, ring.group),
        ]
        self._requests = dist.batch_isend_irecv(operations)

    def wait(self) -> Tensor:
        """Wait for the tensor from the previous rank and return it."""
        for request in self._requests:
            request.wait()
        return self._received
