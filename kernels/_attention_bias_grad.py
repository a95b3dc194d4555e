"""The gradient of a bias that is added to the scores of attention: ds = p (dp - delta).

It is summed over the dimensions in which the bias is broadcast. A separate kernel recomputes the
scores, so that the other gradients are not slowed down, and each element is summed by one program
in a fixed order.
"""

import triton
import triton.language as tl

from ._attention_tile import (
    dot,
    dropout_keep,
    from_bits,
    load_row_stats,
    load_tile,
    probabilities,
    visible_keys,
)


@triton.jit
def bias_grad_kernel(
    q, k, v, grad_out, lse, lse_low, delta, grad_bias, masks, scalars, S, T, left, right,
    batches, heads, SUM_ROWS: tl.constexpr, SUM_COLUMNS: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient, summed over `batches` batch entries and `heads` heads.

    The grid has a program for each tile of a head's gradient (only one along a summed dimension),
    for each head and batch entry that is not summed. With SUM_ROWS the tile is summed over all
    queries, with SUM_COLUMNS over all keys.
    """
    tiles_q = tl.cdiv(S, P.M)
    tiles_k = tl.cdiv(T, P.N)
    across = 1 if SUM_COLUMNS else tiles_k
    down = 1 if SUM_ROWS else tiles_q
    entry = tl.program_id(0) // (across * down)
    q_tile = tl.program_id(0) // across % down
    k_tile = tl.program_id(0) % across
    head_entries = P.H // heads
    first_head = entry % head_entries * (heads == 1)
    first_batch = entry // head_entries * (batches == 1)
    rows = tiles_q if SUM_ROWS else 1
    columns = tiles_k if SUM_COLUMNS else 1
    acc = tl.full([P.M, P.N], 0, P.ACC)
    for n in range(batches * heads * rows * columns):
        j0 = (k_tile + n % columns) * P.N
        i0 = (q_tile + n // columns % rows) * P.M
        h = first_head + n // columns // rows % heads
        b = first_batch + n // columns // rows // heads
        last = tl.minimum(i0 + P.M, S) - 1
        begin, end, _, _ = visible_keys(i0, last, S, T, left, right, P)
        if (begin < j0 + P.N) & (end > j0):
            acc += score_grads(q, k, v, grad_out, lse, lse_low, delta, masks, scalars, b, h, i0, j0,
                               S, T, left, right, P)  # fmt: skip
    pointer = grad_bias.ptr + (entry // head_entries).to(tl.int64) * grad_bias.batch
    pointer += (entry % head_entries).to(tl.int64) * grad_bias.head
    i = q_tile * P.M + tl.arange(0, P.M)
    j = k_tile * P.N + tl.arange(0, P.N)
    dtype: tl.constexpr = grad_bias.ptr.dtype.element_ty
    if SUM_ROWS and SUM_COLUMNS:
        tl.store(pointer, tl.sum(tl.sum(acc, 1), 0).to(dtype))
    elif SUM_ROWS:
        tl.store(pointer + j * grad_bias.col, tl.sum(acc, 0).to(dtype), mask=j < T)
    elif SUM_COLUMNS:
        tl.store(pointer + i * grad_bias.row, tl.sum(acc, 1).to(dtype), mask=i < S)
    else:
        pointers = pointer + i.to(tl.int64)[:, None] * grad_bias.row + j[None, :] * grad_bias.col
        tl.store(pointers, acc.to(dtype), mask=(i < S)[:, None] & (j < T)[None, :])


@triton.jit
def score_grads(q, k, v, grad_out, lse, lse_low, delta, masks, scalars, b, h, i0, j0, S, T, left,
                right, P: tl.constexpr):  # fmt: skip
    """ds of one tile: the gradient of the bias before the sums."""
    kv_head = h // (P.H // P.K)
    i = i0 + tl.arange(0, P.M)[:, None]
    j = j0 + tl.arange(0, P.N)[None, :]
    row = i0.to(tl.int64)
    column = j0.to(tl.int64)
    queries = load_tile(q, b, h, row, S - i0, P.M, P.D, P.BLOCK_D, True, P)
    keys = load_tile(k, b, kv_head, column, T - j0, P.N, P.D, P.BLOCK_D, True, P)
    s = dot(queries, keys.T, P.M, P.N, P)
    do = load_tile(grad_out, b, h, row, S - i0, P.M, P.DV, P.BLOCK_DV, True, P)
    values = load_tile(v, b, kv_head, column, T - j0, P.N, P.DV, P.BLOCK_DV, True, P)
    dp = dot(do, values.T, P.M, P.N, P)
    total, low, d = load_row_stats(lse, lse_low, delta, b, h, row, S - i0, P.M, P)
    slope = 0.0
    if P.ALIBI:
        slope = tl.load(masks.slopes.ptr + b * masks.slopes.batch + h * masks.slopes.head)
        slope = slope.to(P.ACC)
    p, _ = probabilities(s, i, j, b, h, i < S, total[:, None], low[:, None], slope, S, T, left,
                         right, masks, scalars, True, P)  # fmt: skip
    if P.DROPOUT:
        keep = dropout_keep(masks.seed, scalars.min_kept, b * P.H + h, i, j0, P.M, P.N)
        dp = tl.where(keep, dp * from_bits(scalars.keep_scale, P), 0.0)
    return p * (dp - d[:, None])
