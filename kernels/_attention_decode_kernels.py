"""The Triton kernels of attention over a cache; attention_decode.py launches them."""

import triton
import triton.language as tl

from ._attention_tile import INF, apply_softcap, dot, dot_add, from_bits
from ._math import divide


@triton.jit
def cache_offset(position, valid, cache, table, b, pages, page, P: tl.constexpr):
    """(offsets of cached positions in head 0, which of them are valid).

    The argument `valid` marks the requested positions; those on a nonexistent page become invalid.
    """
    if P.PAGED:
        entry = table.ptr + b * table.batch + position // page * table.row
        page_index = tl.load(entry, valid, other=-1).to(tl.int64)
        valid = valid & (page_index >= 0) & (page_index < pages)
        return page_index * cache.batch + position % page * cache.row, valid
    else:
        return b * cache.batch + position * cache.row, valid


@triton.jit
def append_kernel(new, cache, table, totals, S, pages, page, SIZE: tl.constexpr, P: tl.constexpr):
    """Write the new key or value of one sequence, head and query into the cache."""
    i = tl.program_id(0) % S
    head = (tl.program_id(0) // S % P.K).to(tl.int64)
    b = (tl.program_id(0) // S // P.K).to(tl.int64)
    total = tl.load(totals + b)
    c = tl.arange(0, P.BLOCK).to(tl.int64)
    # Repeat the position for each column, because cache_offset takes a block of positions.
    position = total - S + i + tl.zeros_like(c)
    valid = (position >= 0) & (total + tl.zeros_like(c) > 0) & (c < SIZE)
    offset, valid = cache_offset(position, valid, cache, table, b, pages, page, P)
    source = new.ptr + b * new.batch + head * new.head + i.to(tl.int64) * new.row
    value = tl.load(source + c * new.col, c < SIZE)
    target = cache.ptr + offset + head * cache.head
    tl.store(target + c * cache.col, value, valid)


@triton.jit
def decode_kernel(
    q, k, v, parts, part_lse, part_low, table, totals, slopes, scalars, batch, S, pages, page, left,
    P: tl.constexpr,
):  # fmt: skip
    """Attention of some queries of all heads of a group to one split of their sequence's keys.

    Axis 0 of the grid counts the tiles of rows of each key head of each sequence. Axis 1 counts the
    splits; the results of a split go to batch entry split * batch + b.
    """
    tiles = tl.cdiv(S * P.GROUP, P.M)
    tile = tl.program_id(0) % tiles
    kv_head = (tl.program_id(0) // tiles % P.K).to(tl.int64)
    b = (tl.program_id(0) // tiles // P.K).to(tl.int64)
    T = tl.load(totals + b)
    r = tile * P.M + tl.arange(0, P.M)
    i = r // P.GROUP
    head = kv_head * P.GROUP + r % P.GROUP
    row_ok = i < S
    c = tl.arange(0, P.BLOCK_D)[None, :]
    offsets = b * q.batch + head * q.head + i.to(tl.int64) * q.row
    queries = tl.load(
        q.ptr + offsets[:, None] + c * q.col, mask=row_ok[:, None] & (c < P.D), other=0
    )  # fmt: skip
    slope = tl.full([P.M], 0, P.ACC)
    if P.ALIBI:
        slope += tl.load(slopes.ptr + b * slopes.batch + head * slopes.head, row_ok, 0).to(P.ACC)

    begin = tl.full([], 0, tl.int64)
    if P.LEFT:
        begin = tl.maximum(begin, T - S - left)
    splits = tl.num_programs(1)
    size = (T - begin + splits - 1) // splits
    size = (size + P.N - 1) // P.N * P.N
    start = begin + tl.program_id(1) * size
    stop = tl.minimum(start + size, T)

    acc = tl.full([P.M, P.BLOCK_DV], 0, P.ACC)
    m = tl.full([P.M], -INF, P.ACC)
    l = tl.full([P.M], 0, P.ACC)
    cv = tl.arange(0, P.BLOCK_DV)[None, :]
    scale = from_bits(scalars.scale, P)
    for j0 in tl.range(start, stop, P.N):
        j = j0 + tl.arange(0, P.N)
        k_offset, valid = cache_offset(j, j < stop, k, table, b, pages, page, P)
        k_offset += kv_head * k.head
        keys = tl.load(
            k.ptr + k_offset[:, None] + c * k.col, mask=valid[:, None] & (c < P.D), other=0
        )  # fmt: skip
        s = dot(queries, keys.T, P.M, P.N, P) * scale
        if P.SOFTCAP:
            s, _ = apply_softcap(s, from_bits(scalars.softcap, P), P)
        behind = i[:, None] + (T - S) - j[None, :]
        if P.ALIBI:
            s -= slope[:, None] * behind.to(P.ACC)
        seen = (behind >= 0) & valid[None, :]
        if P.LEFT:
            seen = seen & (behind <= left)
        s = tl.where(seen, s, -INF)
        top = tl.maximum(m, tl.max(s, 1))
        base = tl.where(top == -INF, 0.0, top)
        p = tl.exp(s - base[:, None])
        alpha = tl.exp(m - base)
        l = l * alpha + tl.sum(p, 1)
        v_offset, valid = cache_offset(j, j < stop, v, table, b, pages, page, P)
        v_offset += kv_head * v.head
        values = tl.load(
            v.ptr + v_offset[:, None] + cv * v.col, mask=valid[:, None] & (cv < P.DV), other=0
        )  # fmt: skip
        acc = dot_add(p.to(values.dtype), values, acc * alpha[:, None], P)
        m = top

    acc = divide(acc, tl.where(l == 0, 1.0, l)[:, None])
    entry = tl.program_id(1) * batch + b
    offsets = entry * parts.batch + head * parts.head + i.to(tl.int64) * parts.row
    tl.store(
        parts.ptr + offsets[:, None] + cv * parts.col, acc, mask=row_ok[:, None] & (cv < P.DV)
    )  # fmt: skip
    # As in _attention_forward.log_sum: `low` is the rounding error of `total`.
    log = tl.log(l)
    total = tl.where(l == 0, -INF, m + log)
    rounded = total - m
    low = tl.where(tl.abs(total) < INF, (m - (total - rounded)) + (log - rounded), 0.0)
    offsets = entry * part_lse.batch + head * part_lse.head + i.to(tl.int64) * part_lse.row
    tl.store(part_lse.ptr + offsets, total, mask=row_ok)
    tl.store(part_low.ptr + offsets, low, mask=row_ok)
