"""The gradients of attention with respect to queries, ALiBi slopes and sinks.

With p = exp(score - lse) recomputed tile by tile, and delta = rowsum(do o) - dlse:

    dp = do v',   ds = p (dp - delta),   dq = scale ds k      (Dao et al., arXiv:2205.14135, B.2)
    dslope = - sum ds |i + T - S - j|,   dsink = - sum exp(sink - lse) delta

A program computes the gradient of one tile of queries, so no two programs add to the same element.
"""

import triton
import triton.language as tl

from ._attention_tile import (
    INF,
    dot,
    dot_add,
    dropout_keep,
    from_bits,
    load_row_stats,
    load_rows,
    load_step,
    load_tile,
    locate_tile,
    loop_bounds,
    offset_at,
    probabilities,
    store_tile,
    visible_keys,
)


@triton.jit
def delta_kernel(
    out, grad_out, lse, lse_low, grad_lse, delta, sink_parts, masks, S, P: tl.constexpr
):
    """Compute delta of one tile of rows, and the tile's part of the gradient of its sink."""
    program = tl.program_id(0)
    tiles = tl.cdiv(S, P.M)
    h = program // tiles % P.H
    b = program // tiles // P.H
    first = program % tiles * P.M
    rows = S - first
    r = tl.arange(0, P.M)
    row = first.to(tl.int64)
    o = load_tile(out, b, h, row, rows, P.M, P.DV, P.BLOCK_DV, True, P)
    do = load_tile(grad_out, b, h, row, rows, P.M, P.DV, P.BLOCK_DV, True, P)
    if P.NARROW:
        d = tl.sum(o.to(P.ACC) * do.to(P.ACC), 1)
    else:
        # By the same product as dp: if one key has all the weight, the two must cancel.
        dots = dot(do, o.T, P.M, P.M, P)
        d = tl.sum(tl.where(r[:, None] == r[None, :], dots, 0.0), 1)
    if grad_lse.ptr is not None:
        d -= load_rows(grad_lse, b, h, row, rows, 0, P.M, P).to(P.ACC)
    start = delta.ptr + (b.to(tl.int64) * delta.batch + h.to(tl.int64) * delta.head)
    tl.store(start + (row + r) * delta.row, d, mask=r < rows)
    if sink_parts is not None:
        total = load_rows(lse, b, h, row, rows, INF, P.M, P)
        low = load_rows(lse_low, b, h, row, rows, 0, P.M, P)
        sink = tl.load(masks.sinks + h).to(P.ACC)
        weight = tl.where(total == -INF, 0.0, tl.exp(sink - total - low))
        tl.store(sink_parts + program, -tl.sum(weight * d, 0))


@triton.jit
def query_grad_kernel(
    q, k, v, grad_out, lse, lse_low, delta, grad_q, slope_parts, masks, scalars, batch, S, T,
    left, right, section, P: tl.constexpr,
):  # fmt: skip
    """Compute dq of one tile of queries, and the tile's part of the gradient of its slope."""
    program = tl.program_id(0)
    b, h, tile, q_first, k_first, S, T = locate_tile(
        program, masks, batch, S, T, section, P.H, True, P.RIGHT, P
    )
    first = tile * P.M
    if P.PACKED and first >= S:
        return
    kv_head = h // (P.H // P.K)
    row = q_first + first
    q_tile = load_tile(q, b, h, row, S - first, P.M, P.D, P.BLOCK_D, True, P)
    do_tile = load_tile(grad_out, b, h, row, S - first, P.M, P.DV, P.BLOCK_DV, True, P)
    total, low, d = load_row_stats(lse, lse_low, delta, b, h, row, S - first, P.M, P)
    slope = 0.0
    if P.ALIBI:
        slope = tl.load(masks.slopes.ptr + b * masks.slopes.batch + h * masks.slopes.head)
        slope = slope.to(P.ACC)

    dq = tl.full([P.M, P.BLOCK_D], 0, P.ACC)
    dslope = tl.full([P.M], 0, P.ACC)
    last = tl.minimum(first + P.M, S) - 1
    begin, end, all_begin, all_end = visible_keys(first, last, S, T, left, right, P)
    start, free, bound, stop = loop_bounds(begin, end, all_begin, all_end, P.N)
    NEED_SLOPE: tl.constexpr = slope_parts is not None
    if P.LEFT:
        dq, dslope = sum_over_keys(
            dq, dslope, q_tile, do_tile, k, v, total, low, d, b, h, kv_head, first, slope, k_first,
            S, T, left, right, masks, scalars, start, free, NEED_SLOPE, True, P,
        )  # fmt: skip
    dq, dslope = sum_over_keys(
        dq, dslope, q_tile, do_tile, k, v, total, low, d, b, h, kv_head, first, slope, k_first,
        S, T, left, right, masks, scalars, free, bound, NEED_SLOPE, False, P,
    )  # fmt: skip
    dq, dslope = sum_over_keys(
        dq, dslope, q_tile, do_tile, k, v, total, low, d, b, h, kv_head, first, slope, k_first,
        S, T, left, right, masks, scalars, bound, stop, NEED_SLOPE, True, P,
    )  # fmt: skip

    if grad_q.ptr is not None:
        dq *= from_bits(scalars.scale, P)
        store_tile(grad_q, b, h, row, S - first, dq, P.M, P.D, P.BLOCK_D, P)
    if NEED_SLOPE:
        pointer = program if P.PACKED else (b * P.H + h) * tl.cdiv(S, P.M) + tile
        tl.store(slope_parts + pointer, -tl.sum(dslope, 0))


@triton.jit
def sum_over_keys(
    dq, dslope, q, do, k, v, total, low, d, b, h, kv_head, first, slope, k_first, S, T, left,
    right, masks, scalars, begin, end, NEED_SLOPE: tl.constexpr, MASKED: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """Add the keys begin..end to the gradients of a tile of queries."""
    i = first + tl.arange(0, P.M)[:, None]
    for j0 in tl.range(begin, end, P.N, warp_specialize=P.WARP_SPECIALIZE):
        j = j0 + tl.arange(0, P.N)[None, :]
        row = k_first + j0
        keys = load_step(k, b, kv_head, row, T - j0, P.N, P.D, P.BLOCK_D, MASKED, P)
        values = load_step(v, b, kv_head, row, T - j0, P.N, P.DV, P.BLOCK_DV, MASKED, P)
        s = dot(q, keys.T, P.M, P.N, P)
        dp = dot(do, values.T, P.M, P.N, P)
        p, derivative = probabilities(
            s, i, j, b, h, i < S, total[:, None], low[:, None], slope, S, T, left, right, masks,
            scalars, MASKED, P,
        )  # fmt: skip
        if P.DROPOUT:
            keep = dropout_keep(masks.seed, scalars.min_kept, b * P.H + h, i, j0, P.M, P.N)
            dp = tl.where(keep, dp * from_bits(scalars.keep_scale, P), 0.0)
        ds = p * (dp - d[:, None])
        if NEED_SLOPE:
            dslope += tl.sum(ds * tl.abs(i + (T - S) - j).to(P.ACC), 1)
        if P.SOFTCAP:
            ds *= derivative
        dq = dot_add(ds.to(keys.dtype), keys, dq, P)
    return dq, dslope


@triton.jit
def slope_sum_kernel(parts, sums, masks, S, P: tl.constexpr):
    """Sum the parts of the slope's gradient over the tiles of one packed sequence and head."""
    b = tl.program_id(0) // P.H
    h = tl.program_id(0) % P.H
    first = offset_at(masks.cu_q, b, S)
    rows = tl.maximum(offset_at(masks.cu_q, b + 1, S) - first, 0)
    total = tl.full([], 0, tl.float64)
    for n in range((rows + P.M - 1) // P.M):
        total += tl.load(parts + (first // P.M + b + n) * P.H + h).to(tl.float64)
    tl.store(sums + tl.program_id(0), total)
