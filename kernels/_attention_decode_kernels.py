"""The Triton kernels of attention over a cache; attention_decode.py launches them."""

import triton
import triton.language as tl
from llama_fast.kernels._attention_tile import INF, capped, number, product, product_of
from llama_fast.kernels._math import divide


@triton.jit
def place_of(position, there, cache, table, b, pages, page, P: tl.constexpr):
    """(offset of cached positions from that of head 0, which of them there are).

    `there` says which are asked for. Of pages, those that the table does not name are not.
    """
    if P.PAGED:
        entry = table.ptr + b * table.batch + position // page * table.row
        where = tl.load(entry, there, other=-1).to(tl.int64)
        there = there & (where >= 0) & (where < pages)
        return where * cache.batch + position % page * cache.row, there
    else:
        return b * cache.batch + position * cache.row, there


@triton.jit
def append_kernel(new, cache, table, totals, S, pages, page, SIZE: tl.constexpr, P: tl.constexpr):
    """Writes the new key or value of one sequence, head and query into the cache."""
    i = tl.program_id(0) % S
    head = (tl.program_id(0) // S % P.K).to(tl.int64)
    b = (tl.program_id(0) // S // P.K).to(tl.int64)
    total = tl.load(totals + b)
    c = tl.arange(0, P.BLOCK).to(tl.int64)
    # Of each column alike, as place_of is of each key elsewhere.
    position = total - S + i + tl.zeros_like(c)
    there = (position >= 0) & (total + tl.zeros_like(c) > 0) & (c < SIZE)
    offset, there = place_of(position, there, cache, table, b, pages, page, P)
    at_new = new.ptr + b * new.batch + head * new.head + i.to(tl.int64) * new.row
    value = tl.load(at_new + c * new.col, c < SIZE)
    at = cache.ptr + offset + head * cache.head
    tl.store(at + c * cache.col, value, there)


@triton.jit
def decode_kernel(
    q, k, v, parts, part_lse, part_low, table, totals, slopes, numbers, batch, S, pages, page, left,
    P: tl.constexpr,
):  # fmt: skip
    """Some queries of all heads of a group beside one share of their sequence's keys.

    Axis 0 of the grid: tiles of rows of each key head of each sequence; axis 1: shares, whose
    results go to batch entry share * batch + b.
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
    at = b * q.batch + head * q.head + i.to(tl.int64) * q.row
    queries = tl.load(
        q.ptr + at[:, None] + c * q.col, mask=row_ok[:, None] & (c < P.D), other=0
    )  # fmt: skip
    slope = tl.full([P.M], 0, P.ACC)
    if P.ALIBI:
        slope += tl.load(slopes.ptr + b * slopes.batch + head * slopes.head, row_ok, 0).to(P.ACC)

    begin = tl.full([], 0, tl.int64)
    if P.LEFT:
        begin = tl.maximum(begin, T - S - left)
    shares = tl.num_programs(1)
    share = (T - begin + shares - 1) // shares
    share = (share + P.N - 1) // P.N * P.N
    start = begin + tl.program_id(1) * share
    stop = tl.minimum(start + share, T)

    acc = tl.full([P.M, P.BLOCK_DV], 0, P.ACC)
    m = tl.full([P.M], -INF, P.ACC)
    l = tl.full([P.M], 0, P.ACC)
    cv = tl.arange(0, P.BLOCK_DV)[None, :]
    scale = number(numbers.scale, P)
    for j0 in tl.range(start, stop, P.N):
        j = j0 + tl.arange(0, P.N)
        k_place, there = place_of(j, j < stop, k, table, b, pages, page, P)
        k_place += kv_head * k.head
        keys = tl.load(
            k.ptr + k_place[:, None] + c * k.col, mask=there[:, None] & (c < P.D), other=0
        )  # fmt: skip
        s = product_of(queries, keys.T, P.M, P.N, P) * scale
        if P.SOFTCAP:
            s, _ = capped(s, number(numbers.softcap, P), P)
        behind = i[:, None] + (T - S) - j[None, :]
        if P.ALIBI:
            s -= slope[:, None] * behind.to(P.ACC)
        seen = (behind >= 0) & there[None, :]
        if P.LEFT:
            seen = seen & (behind <= left)
        s = tl.where(seen, s, -INF)
        top = tl.maximum(m, tl.max(s, 1))
        base = tl.where(top == -INF, 0.0, top)
        p = tl.exp(s - base[:, None])
        alpha = tl.exp(m - base)
        l = l * alpha + tl.sum(p, 1)
        v_place, there = place_of(j, j < stop, v, table, b, pages, page, P)
        v_place += kv_head * v.head
        values = tl.load(
            v.ptr + v_place[:, None] + cv * v.col, mask=there[:, None] & (cv < P.DV), other=0
        )  # fmt: skip
        acc = product(p.to(values.dtype), values, acc * alpha[:, None], P)
        m = top

    acc = divide(acc, tl.where(l == 0, 1.0, l)[:, None])
    entry = tl.program_id(1) * batch + b
    at = entry * parts.batch + head * parts.head + i.to(tl.int64) * parts.row
    tl.store(
        parts.ptr + at[:, None] + cv * parts.col, acc, mask=row_ok[:, None] & (cv < P.DV)
    )  # fmt: skip
    # As in _attention_forward.log_sum: the second part is what the sum's rounding lost.
    log = tl.log(l)
    total = tl.where(l == 0, -INF, m + log)
    rounded = total - m
    low = tl.where(tl.abs(total) < INF, (m - (total - rounded)) + (log - rounded), 0.0)
    at = entry * part_lse.batch + head * part_lse.head + i.to(tl.int64) * part_lse.row
    tl.store(part_lse.ptr + at, total, mask=row_ok)
    tl.store(part_low.ptr + at, low, mask=row_ok)
