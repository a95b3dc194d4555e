"""Attention forward in Triton: one program per tile of queries, which loops over its keys.

Running maximum and sum of softmax: Milakov and Gimelshein (arXiv:1805.02867). Tiling:
    FlashAttention
(Dao et al., arXiv:2205.14135 and 2307.08691). If there are few queries, the keys are split among
programs, as in flash decoding, and `combine_kernel` merges the splits.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ._attention_plan import Masks, strided_heads, strided_rows
from ._attention_tile import (
    INF,
    LN2,
    dot,
    dot_add,
    dropout_keep,
    exp_scores,
    from_bits,
    in_window,
    is_padding,
    load_step,
    locate_tile,
    loop_bounds,
    modify_scores,
    visible_keys,
)
from ._launch import launch
from ._math import divide


@triton.jit
def forward_kernel(
    q, k, v, out, lse, lse_low, masks, scalars, batch, S, T, left, right, section,
    P: tl.constexpr,
):  # fmt: skip
    """Compute out, lse and lse_low for one tile of queries and one split of their keys.

    S and T are the lengths, or the numbers of rows of packed tensors. Axis 0 of the grid counts the
    tiles of all heads, axis 1 the splits; the results of split n go to batch entry n * batch + b.
    """
    program = tl.program_id(0)
    HEADS: tl.constexpr = P.H // P.GROUP
    b, unit_head, tile, q_first, k_first, S, T = locate_tile(
        program, masks, batch, S, T, section, HEADS, True, P.RIGHT, P
    )
    if P.PACKED and tile * P.M >= S:
        return

    # A row of the tile is a query or, with GROUP > 1, a query and one of the heads of a group.
    r = tile * P.M + tl.arange(0, P.M)
    i = r // P.GROUP
    head = unit_head * P.GROUP + (r % P.GROUP if P.GROUP > 1 else 0)
    kv_head = unit_head * P.GROUP // (P.H // P.K)
    row_ok = i < S
    c = tl.arange(0, P.BLOCK_D)[None, :]
    offsets = b.to(tl.int64) * q.batch + head.to(tl.int64) * q.head + (q_first + i) * q.row
    q_tile = tl.load(
        q.ptr + offsets[:, None] + c.to(P.OFFSET) * q.col,
        mask=row_ok[:, None] & (c < P.D), other=0,
    )  # fmt: skip
    slope = 0.0
    if P.ALIBI:
        slope = tl.load(masks.slopes.ptr + b * masks.slopes.batch + head * masks.slopes.head)
        slope = slope.to(P.ACC)[:, None] if P.GROUP > 1 else slope.to(P.ACC)

    acc = tl.full([P.M, P.BLOCK_DV], 0, P.ACC)
    m = tl.full([P.M], -INF, P.ACC)
    l = tl.full([P.M], 0, P.ACC)
    if P.SINKS:
        sink = tl.load(masks.sinks + head).to(P.ACC) * P.UNIT
        m = tl.full([P.M], 0, P.ACC) + sink
        l = tl.where(m == -INF, 0.0, 1.0).to(P.ACC)

    first = tile * P.M // P.GROUP
    last = tl.minimum((tile * P.M + P.M - 1) // P.GROUP, S - 1)
    begin, end, all_begin, all_end = visible_keys(first, last, S, T, left, right, P)
    start, free, bound, stop = loop_bounds(begin, end, all_begin, all_end, P.N)
    size = (stop - start + P.N - 1) // P.N
    size = (size + tl.num_programs(1) - 1) // tl.num_programs(1) * P.N
    start = tl.minimum(start + tl.program_id(1) * size, stop)
    stop = tl.minimum(start + size, stop)
    free = tl.minimum(tl.maximum(free, start), stop)
    bound = tl.minimum(tl.maximum(bound, start), stop)

    if P.LEFT:
        acc, l, m = attend(acc, l, m, q_tile, k, v, b, head, kv_head, i, row_ok, slope, k_first,
                           S, T, left, right, masks, scalars, start, free, True, P)  # fmt: skip
    acc, l, m = attend(acc, l, m, q_tile, k, v, b, head, kv_head, i, row_ok, slope, k_first,
                       S, T, left, right, masks, scalars, free, bound, False, P)  # fmt: skip
    acc, l, m = attend(acc, l, m, q_tile, k, v, b, head, kv_head, i, row_ok, slope, k_first,
                       S, T, left, right, masks, scalars, bound, stop, True, P)  # fmt: skip

    acc = divide(acc, tl.where(l == 0, 1.0, l)[:, None])
    if P.DROPOUT:
        acc *= from_bits(scalars.keep_scale, P)
    b += tl.program_id(1) * batch
    c = tl.arange(0, P.BLOCK_DV)[None, :]
    offsets = b.to(tl.int64) * out.batch + head.to(tl.int64) * out.head + (q_first + i) * out.row
    tl.store(
        out.ptr + offsets[:, None] + c.to(P.OFFSET) * out.col,
        acc.to(out.ptr.dtype.element_ty), mask=row_ok[:, None] & (c < P.DV),
    )  # fmt: skip
    total, rest = log_sum(m, l, P)
    offsets = b.to(tl.int64) * lse.batch + head.to(tl.int64) * lse.head + (q_first + i) * lse.row
    tl.store(lse.ptr + offsets, total, mask=row_ok)
    tl.store(lse_low.ptr + offsets, rest, mask=row_ok)


@triton.jit
def attend(acc, l, m, q, k, v, b, head, kv_head, i, row_ok, slope, k_first, S, T, left, right,
           masks, scalars, begin, end, MASKED: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """Add the keys begin..end to the sums: acc = sum p v, l = sum p, m = the largest score."""
    scale = from_bits(scalars.scale, P) * P.UNIT
    rows = i[:, None]
    for j0 in tl.range(begin, end, P.N, warp_specialize=P.WARP_SPECIALIZE):
        j = j0 + tl.arange(0, P.N)[None, :]
        keys = load_step(k, b, kv_head, k_first + j0, T - j0, P.N, P.D, P.BLOCK_D, MASKED, P)
        s = dot(q, keys.T, P.M, P.N, P)
        if P.PLAIN:
            if MASKED:
                s = tl.where(in_window(rows, j, S, T, left, right, P), s, -INF)
            if P.PADDING:
                s = tl.where(is_padding(masks.padding, b, j, T), -INF, s)
            top = tl.maximum(m, tl.max(s, 1) * scale)
            base = tl.where(top == -INF, 0.0, top)
            p = exp_scores(s * scale - base[:, None], P)
        else:
            where = head[:, None] if P.GROUP > 1 else head
            s, _ = modify_scores(s, rows, j, b, where, row_ok[:, None], slope, S, T, left, right,
                                 masks, scalars, MASKED, P)  # fmt: skip
            top = tl.maximum(m, tl.max(s, 1))
            base = tl.where(top == -INF, 0.0, top)
            p = exp_scores(s - base[:, None], P)
        alpha = exp_scores(m - base, P)
        l = l * alpha + tl.sum(p, 1)
        acc = acc * alpha[:, None]
        if P.DROPOUT:
            stream = b * P.H + head
            stream = stream[:, None] if P.GROUP > 1 else stream
            keep = dropout_keep(masks.seed, scalars.min_kept, stream, rows, j0, P.M, P.N)
            p = tl.where(keep, p, 0.0)
        values = load_step(v, b, kv_head, k_first + j0, T - j0, P.N, P.DV, P.BLOCK_DV, MASKED, P)
        acc = dot_add(p.to(values.dtype), values, acc, P)
        m = top
    return acc, l, m


@triton.jit
def log_sum(m, l, P: tl.constexpr):
    """Natural log-sum-exp of scores as a sum of two numbers; -inf if no key is visible.

    The second number is the rounding error of the first (Knuth's two-sum), which the backward pass
    needs if scores are in the thousands. For 16-bit inputs it is not needed.
    """
    log = tl.log(l)
    if P.BASE2:
        total = tl.where(l == 0, -INF, m * LN2 + log)
        return total, tl.zeros_like(total)
    else:
        total = tl.where(l == 0, -INF, m + log)
        rounded = total - m
        rest = (m - (total - rounded)) + (log - rounded)
        return total, tl.where(tl.abs(total) < INF, rest, 0.0)


@triton.jit
def combine_kernel(
    parts, part_lse, part_low, out, lse, lse_low, masks, batch, splits, S, P: tl.constexpr
):
    """Combine the splits of row i of (b, h), weighted by exp(lse of the split - lse of all)."""
    i = tl.program_id(0) % S
    h = tl.program_id(0) // S % P.H
    b = tl.program_id(0) // S // P.H
    c = tl.arange(0, P.BLOCK_DV)
    m = tl.full([], -INF, P.ACC)
    l = tl.full([], 0, P.ACC)
    acc = tl.full([P.BLOCK_DV], 0, P.ACC)
    if P.SINKS:
        m = tl.load(masks.sinks + h).to(P.ACC)
        l = tl.where(m == -INF, 0.0, 1.0).to(P.ACC)
    for n in range(splits):
        entry = (n * batch + b).to(tl.int64)
        offset = entry * part_lse.batch + h * part_lse.head + i * part_lse.row
        one, low = tl.load(part_lse.ptr + offset), tl.load(part_low.ptr + offset)
        pointer = parts.ptr + entry * parts.batch + h * parts.head + i * parts.row
        values = tl.load(pointer + c * parts.col, mask=c < P.DV, other=0)
        top = tl.maximum(m, one)
        base = tl.where(top == -INF, 0.0, top)
        alpha, weight = tl.exp(m - base), tl.exp(one - base + low)
        acc = acc * alpha + values * weight
        l = l * alpha + weight
        m = top
    acc = divide(acc, tl.zeros_like(acc) + tl.where(l == 0, 1.0, l))
    pointer = out.ptr + b.to(tl.int64) * out.batch + h.to(tl.int64) * out.head
    pointer += i.to(tl.int64) * out.row
    tl.store(pointer + c.to(P.OFFSET) * out.col, acc.to(out.ptr.dtype.element_ty), mask=c < P.DV)
    total, rest = log_sum(m, l, P)
    offset = b.to(tl.int64) * lse.batch + h.to(tl.int64) * lse.head + i.to(tl.int64) * lse.row
    tl.store(lse.ptr + offset, total)
    tl.store(lse_low.ptr + offset, rest)


def combine_splits(
    parts: tuple[torch.Tensor, ...],
    results: tuple[torch.Tensor, ...],
    masks: Masks,
    splits: int,
    plan: Any,
) -> None:
    """Fill results (out, lse, lse_low) from those of the splits.

    The splits are consecutive along the batch dimension. `plan` is the plan of the kernel that
    computed them.
    """
    (out, lse, lse_low), (B, H, S) = results, results[1].shape
    arguments = (
        strided_heads(parts[0]),
        *map(strided_rows, parts[1:]),
        strided_heads(out),
        *map(strided_rows, (lse, lse_low)),
        masks,
        B,
        splits,
        S,
    )
    launch(combine_kernel, (B * H * S,), arguments, {"P": plan, "num_warps": 4})
