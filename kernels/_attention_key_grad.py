"""The gradients of attention that belong to keys: dk and dv.

With p = exp(score - lse) made again tile by tile, and delta = rowsum(do o) - dlse:

    dv = p' do,   dp = do v',   ds = p (dp - delta),   dk = scale ds' q

One program makes them for one tile of keys of one key head, walking over the queries of all the
heads that share it: sums over a group need no atomic additions. Tiles of scores are transposed,
keys by queries, since both products want them so.
"""

import triton
import triton.language as tl
from llama_fast.kernels._attention_tile import (
    kept,
    load_step,
    load_sums,
    load_tile,
    number,
    probabilities,
    product,
    product_of,
    queries_seeing,
    sequence,
    store_tile,
    tile_steps,
)


@triton.jit
def key_grad_kernel(
    q, k, v, grad_out, lse, lse_low, delta, grad_k, grad_v, masks, numbers, batch, S, T, left,
    right, section, P: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys; either may be unwanted."""
    b, kv_head, tile, q_first, k_first, S, T = sequence(
        tl.program_id(0), masks, batch, S, T, section, P.K, False, False, P
    )
    first = tile * P.N
    if P.PACKED and first >= T:
        return
    WANT_K: tl.constexpr = grad_k.ptr is not None
    WANT_V: tl.constexpr = grad_v.ptr is not None
    row = k_first + first
    keys = load_tile(k, b, kv_head, row, T - first, P.N, P.D, P.BLOCK_D, True, P)
    values = load_tile(v, b, kv_head, row, T - first, P.N, P.DV, P.BLOCK_DV, True, P)
    dk = tl.full([P.N, P.BLOCK_D], 0, P.ACC)
    dv = tl.full([P.N, P.BLOCK_DV], 0, P.ACC)
    last = tl.minimum(first + P.N, T) - 1
    begin, end, all_begin, all_end = queries_seeing(first, last, S, T, left, right, P)
    start, free, bound, stop = tile_steps(begin, end, all_begin, all_end, P.M)
    if not P.LEFT:
        bound = stop  # queries beyond the last one are loaded as zeros, and weigh nothing
    GROUP: tl.constexpr = P.H // P.K
    for member in range(GROUP):
        h = kv_head * GROUP + member
        slope = 0.0
        if P.ALIBI:
            slope = tl.load(masks.slopes.ptr + b * masks.slopes.batch + h * masks.slopes.head)
            slope = slope.to(P.ACC)
        if P.RIGHT:
            dk, dv = over_queries(
                dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope,
                q_first, S, T, left, right, masks, numbers, start, free, WANT_K, WANT_V, True, P,
            )  # fmt: skip
        dk, dv = over_queries(
            dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope, q_first,
            S, T, left, right, masks, numbers, free, bound, WANT_K, WANT_V, False, P,
        )  # fmt: skip
        if P.LEFT:
            dk, dv = over_queries(
                dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope,
                q_first, S, T, left, right, masks, numbers, bound, stop, WANT_K, WANT_V, True, P,
            )  # fmt: skip
    if WANT_K:
        dk *= number(numbers.scale, P)
        store_tile(grad_k, b, kv_head, row, T - first, dk, P.N, P.D, P.BLOCK_D, P)
    if WANT_V:
        store_tile(grad_v, b, kv_head, row, T - first, dv, P.N, P.DV, P.BLOCK_DV, P)


@triton.jit
def over_queries(
    dk, dv, q, grad_out, keys, values, lse, lse_low, delta, b, h, first, slope, q_first, S, T,
    left, right, masks, numbers, begin, end, WANT_K: tl.constexpr, WANT_V: tl.constexpr,
    MASKED: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Add the queries begin..end of head h to the gradients of a tile of keys."""
    PARTIAL: tl.constexpr = MASKED or not P.LEFT  # the last tile may be among these
    j = first + tl.arange(0, P.N)[:, None]
    for i0 in tl.range(begin, end, P.M, warp_specialize=P.WARP_SPECIALIZE):
        i = i0 + tl.arange(0, P.M)[None, :]
        row = q_first + i0
        queries = load_step(q, b, h, row, S - i0, P.M, P.D, P.BLOCK_D, PARTIAL, P)
        do = load_step(grad_out, b, h, row, S - i0, P.M, P.DV, P.BLOCK_DV, PARTIAL, P)
        total, low, d = load_sums(lse, lse_low, delta, b, h, row, S - i0, P.M, P)
        s = product_of(keys, queries.T, P.N, P.M, P)
        p, derivative = probabilities(
            s, i, j, b, h, i < S, total[None, :], low[None, :], slope, S, T, left, right, masks,
            numbers, MASKED, P,
        )  # fmt: skip
        if P.DROPOUT:
            column = i0 + tl.arange(0, P.M)[:, None]
            keep = kept(masks.seed, numbers.keep, b * P.H + h, column, first, P.M, P.N).T
            survivors = number(numbers.survivors, P)
        if WANT_V:
            weights = tl.where(keep, p * survivors, 0.0) if P.DROPOUT else p
            dv = product(weights.to(do.dtype), do, dv, P)
        if WANT_K:
            dp = product_of(values, do.T, P.N, P.M, P)
            if P.DROPOUT:
                dp = tl.where(keep, dp * survivors, 0.0)
            ds = p * (dp - d[None, :])
            if P.SOFTCAP:
                ds *= derivative
            dk = product(ds.to(queries.dtype), queries, dk, P)
    return dk, dv
