"""Attention over a cache in Triton: the keys in use are packed, then attended to as such.

A kernel copies the keys that a sequence holds, the new ones among them, into one packed tensor, and
on the way writes the new ones into the cache; the attention kernels do the rest. So the cache is
read, written and read again: any layout, head size and dtype, and no length is read by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from llama_fast.kernels._launch import launch, new_like_heads
from llama_fast.kernels.attention import attention, forward_kernel

__all__ = ["attention_decode", "examples", "forward_kernel", "pack_kernel"]


@triton.jit
def pack_kernel(
    cache,
    cache_strides,
    new,
    new_strides,
    table,
    table_strides,
    packed,
    offsets,
    totals,
    pages,
    page,
    kv_heads,
    size,
    blocks,
    added,
    PAGED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some positions of one sequence and key head: from the cache, or new and into it too.

    Sequence b has totals[b] keys, of which the last offsets[b + 1] - offsets[b] are wanted; the
    last `added` of them are new.
    """
    block = tl.program_id(0) % blocks
    head = ((tl.program_id(0) // blocks) % kv_heads).to(tl.int64)
    b = (tl.program_id(0) // blocks // kv_heads).to(tl.int64)
    begin = tl.load(offsets + b)
    wanted = tl.load(offsets + b + 1) - begin
    total = tl.load(totals + b)
    row = block * ROWS + tl.arange(0, ROWS).to(tl.int64)
    exists = row < wanted
    position = total - wanted + row
    if PAGED:
        entry = table + b * table_strides[0] + position // page * table_strides[1]
        where = tl.load(entry, exists, other=-1).to(tl.int64)
        exists = exists & (where >= 0) & (where < pages)
        position_in_page = position % page
    else:
        where = b
        position_in_page = position
    column = tl.arange(0, BLOCK_D).to(tl.int64)
    filled = column < size
    in_cache = where * cache_strides[0] + head * cache_strides[1]
    in_cache += position_in_page * cache_strides[2]
    at = cache + in_cache[:, None] + column[None, :] * cache_strides[3]
    is_new = position >= total - added
    old = exists & (position < total - added)
    values = tl.load(at, old[:, None] & filled[None, :], other=0.0)
    if new is not None:
        i = position - (total - added)
        at_new = new + b * new_strides[0] + head * new_strides[1] + i[:, None] * new_strides[2]
        mask = (exists & is_new)[:, None] & filled[None, :]
        fresh = tl.load(at_new + column[None, :] * new_strides[3], mask, other=0.0)
        tl.store(at, fresh, mask)
        values = tl.where(is_new[:, None], fresh, values)
    to = packed + ((begin + row) * kv_heads + head)[:, None] * size + column[None, :]
    tl.store(to, values, (row < wanted)[:, None] & filled[None, :])


def attention_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    cache_seqlens: torch.Tensor,
    page_table: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    window_left: int,
    scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator llama_fast::attention_decode: out, lse."""
    B, H, S, _ = q.shape
    pages, _, page = k_cache.shape[:3]
    capacity = page if page_table is None else page * page_table.shape[1]
    added = 0 if k is None else S
    totals = cache_seqlens.long() + added
    good = (cache_seqlens >= 0) & (totals <= capacity)
    totals = totals * good
    wanted = totals if window_left < 0 else totals.clamp(max=S + window_left)
    if page_table is not None:
        good = good & ~_bad_pages(page_table, totals - wanted, totals, pages, page)
    most = capacity if window_left < 0 else min(capacity, S + window_left)

    zero = totals.new_zeros(1)
    offsets = torch.cat((zero, wanted.cumsum(0)))
    keys, values = (
        _packed(cache, new, page_table, offsets, totals, most, added)
        for cache, new in ((k_cache, k), (v_cache, v))
    )
    # All heads of a group ask for the same keys. As rows of one head they read them once; but a row
    # has one position, slope and sink.
    fold = S == 1 and alibi_slopes is None and sinks is None
    heads, rows = (k_cache.shape[1], H // max(k_cache.shape[1], 1)) if fold else (H, S)
    queries = q.reshape(B, heads, rows, q.shape[3]).transpose(1, 2)
    out, lse, _ = attention(
        queries.reshape(B * rows, heads, q.shape[3]), keys, values, None, None, alibi_slopes, sinks,
        torch.arange(B + 1, device=q.device) * rows, offsets, None,
        not fold, -1 if fold else window_left, -1, scale, softcap, 0.0,
    )  # fmt: skip
    bad = ~good.view(B, 1, 1)
    lse = lse.view(B, rows, heads).transpose(1, 2).reshape(B, H, S).masked_fill(bad, torch.nan)
    values = (
        out.view(B, rows, heads, v_cache.shape[3])
        .transpose(1, 2)
        .reshape(B, H, S, v_cache.shape[3])
    )
    out = new_like_heads(q if q.shape == values.shape else values)
    return out.copy_(values.masked_fill(bad.unsqueeze(3), torch.nan)), lse


def _bad_pages(
    table: torch.Tensor, firsts: torch.Tensor, totals: torch.Tensor, pages: int, page: int
) -> torch.Tensor:
    """Which sequences use a page that there is not, (B,)."""
    entry = torch.arange(table.shape[1], device=table.device)
    used = (entry >= (firsts // page).unsqueeze(1)) & (entry * page < totals.unsqueeze(1))
    return (used & ((table < 0) | (table >= pages))).any(1)


def _packed(
    cache: torch.Tensor,
    new: torch.Tensor | None,
    table: torch.Tensor | None,
    offsets: torch.Tensor,
    totals: torch.Tensor,
    most: int,
    added: int,
) -> torch.Tensor:
    """(B * most, K, size): what the sequences want, one behind the other; `new` into the cache."""
    pages, heads, page, size = cache.shape
    batch = totals.shape[0]
    packed = cache.new_empty(batch * most, heads, size)
    block = triton.next_power_of_2(max(size, 1))
    rows = max(1, 4096 // block)
    blocks = triton.cdiv(most, rows)
    arguments = (
        cache,
        cache.stride(),
        new,
        (0, 0, 0, 0) if new is None else new.stride(),
        table,
        (0, 0) if table is None else table.stride(),
        packed,
        offsets,
        totals,
        pages,
        page,
        heads,
        size,
        blocks,
        added,
    )
    options = {"PAGED": table is not None, "ROWS": rows, "BLOCK_D": block, "num_warps": 4}
    launch(pack_kernel, (batch * heads * blocks,), arguments, options)
    return packed


def examples() -> Iterator[Callable[[], object]]:
    """Calls that reach every configuration of this file's kernel."""
    for dtype, D in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float32, 128)):
        for paged in (False, True):
            for new in (False, True):
                yield lambda a=(dtype, D, paged, new): _example(*a)
        yield lambda a=(dtype, D, False, True, 2): _example(*a)


def _example(dtype: torch.dtype, D: int, paged: bool, append: bool, S: int = 1) -> None:
    """A call on tensors without memory."""

    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    B, H, K = 4, 32, 8
    q, new = empty(B, H, S, D), empty(B, K, S, D) if append else None
    cache = empty(100, K, 64, D) if paged else empty(B, K, 4096, D)
    table = empty(B, 64, of=torch.int32) if paged else None
    lengths = empty(B, of=torch.int32)
    attention_decode(q, cache, cache, new, new, lengths, table, None, None, -1, D**-0.5, 0.0)
