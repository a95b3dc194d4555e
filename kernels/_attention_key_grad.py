"""The gradients of attention with respect to keys and values: dk and dv.

With p = exp(score - lse) recomputed tile by tile, and delta = rowsum(do o) - dlse:

    dv = p' do,   dp = do v',   ds = p (dp - delta),   dk = scale ds' q

A program computes them for one tile of keys of one key head, in a loop over the queries of all
heads that share it, so sums over a group need no atomic additions. Tiles of scores are transposed
(keys by queries), because both products need that form.
"""

import triton
import triton.language as tl

from ._attention_tile import (
    dot,
    dot_add,
    dropout_keep,
    from_bits,
    load_row_stats,
    load_step,
    load_tile,
    locate_tile,
    loop_bounds,
    probabilities,
    store_tile,
    visible_queries,
)


@triton.jit
def key_grad_kernel(
    q, k, v, grad_out, lse, lse_low, delta, grad_k, grad_v, masks, scalars, batch, S, T, left,
    right, section, P: tl.constexpr,
):  # fmt: skip
    """Compute dk, dv or both for one tile of keys."""
    b, kv_head, tile, q_first, k_first, S, T = locate_tile(
        tl.program_id(0), masks, batch, S, T, section, P.K, False, False, P
    )
    first = tile * P.N
    if P.PACKED and first >= T:
        return
    NEED_K: tl.constexpr = grad_k.ptr is not None
    NEED_V: tl.constexpr = grad_v.ptr is not None
    row = k_first + first
    keys = load_tile(k, b, kv_head, row, T - first, P.N, P.D, P.BLOCK_D, True, P)
    values = load_tile(v, b, kv_head, row, T - first, P.N, P.DV, P.BLOCK_DV, True, P)
    dk = tl.full([P.N, P.BLOCK_D], 0, P.ACC)
    dv = tl.full([P.N, P.BLOCK_DV], 0, P.ACC)
    last = tl.minimum(first + P.N, T) - 1
    begin, end, all_begin, all_end = visible_queries(first, last, S, T, left, right, P)
    start, free, bound, stop = loop_bounds(begin, end, all_begin, all_end, P.M)
    if not P.LEFT:
        bound = stop  # queries past the last are loaded as zeros and add nothing
    GROUP: tl.constexpr = P.H // P.K
    for member in range(GROUP):
        h = kv_head * GROUP + member
        slope = 0.0
        if P.ALIBI:
            slope = tl.load(masks.slopes.ptr + b * masks.slopes.batch + h * masks.slopes.head)
            slope = slope.to(P.ACC)
        if P.RIGHT:
            dk, dv = sum_over_queries(
                dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope,
                q_first, S, T, left, right, masks, scalars, start, free, NEED_K, NEED_V, True, P,
            )  # fmt: skip
        dk, dv = sum_over_queries(
            dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope, q_first,
            S, T, left, right, masks, scalars, free, bound, NEED_K, NEED_V, False, P,
        )  # fmt: skip
        if P.LEFT:
            dk, dv = sum_over_queries(
                dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope,
                q_first, S, T, left, right, masks, scalars, bound, stop, NEED_K, NEED_V, True, P,
            )  # fmt: skip
    if NEED_K:
        dk *= from_bits(scalars.scale, P)
        store_tile(grad_k, b, kv_head, row, T - first, dk, P.N, P.D, P.BLOCK_D, P)
    if NEED_V:
        store_tile(grad_v, b, kv_head, row, T - first, dv, P.N, P.DV, P.BLOCK_DV, P)


@triton.jit
def sum_over_queries(
    dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope, q_first, S, T,
    left, right, masks, scalars, begin, end, NEED_K: tl.constexpr, NEED_V: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Add the queries begin..end of head h to the gradients of a tile of keys."""
    PARTIAL: tl.constexpr = MASKED or not P.LEFT  # the last, partial tile may be among these
    j = first + tl.arange(0, P.N)[:, None]
    for i0 in tl.range(begin, end, P.M, warp_specialize=P.WARP_SPECIALIZE):
        i = i0 + tl.arange(0, P.M)[None, :]
        row = q_first + i0
        queries = load_step(q, b, h, row, S - i0, P.M, P.D, P.BLOCK_D, PARTIAL, P)
        do = load_step(grad_out, b, h, row, S - i0, P.M, P.DV, P.BLOCK_DV, PARTIAL, P)
        total, low, d = load_row_stats(lse, lse_low, delta, b, h, row, S - i0, P.M, P)
        s = dot(keys, queries.T, P.N, P.M, P)
        p, derivative = probabilities(
            s, i, j, b, h, i < S, total[None, :], low[None, :], slope, S, T, left, right, masks,
            scalars, MASKED, P,
        )  # fmt: skip
        if P.DROPOUT:
            column = i0 + tl.arange(0, P.M)[:, None]
            keep = dropout_keep(
                masks.seed, scalars.min_kept, b * P.H + h, column, first, P.M, P.N
            ).T
            survivors = from_bits(scalars.keep_scale, P)
        if NEED_V:
            weights = tl.where(keep, p * survivors, 0.0) if P.DROPOUT else p
            dv = dot_add(weights.to(do.dtype), do, dv, P)
        if NEED_K:
            dp = dot(values, do.T, P.N, P.M, P)
            if P.DROPOUT:
                dp = tl.where(keep, dp * survivors, 0.0)
            ds = p * (dp - d[None, :])
            if P.SOFTCAP:
                ds *= derivative
            dk = dot_add(ds.to(queries.dtype), queries, dk, P)
    return dk, dv
