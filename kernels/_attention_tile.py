"""Device functions that the attention kernels share: positions, tiles of scores, masks, dropout.

Every kernel works on tiles of queries by keys. A tile is described by the position `i` of its
queries and `j` of its keys inside their sequence, two index tensors that broadcast against each
other: (queries, 1) and (1, keys), or (1, queries) and (keys, 1) for a transposed tile.

`P` is the `Plan` of the call (see `_attention_plan.py`), a compile-time constant.
"""

import triton
import triton.language as tl

from ._math import tanh

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LN2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))


@triton.jit
def from_bits(bits, P: tl.constexpr):
    """A double from its bits: Triton would pass a Python float as a float32."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(P.ACC)


@triton.jit
def exp_scores(x, P: tl.constexpr):
    """exp of scores; for 16-bit inputs the faster 2^x, as log2(e) is part of the scale."""
    return tl.exp2(x) if P.BASE2 else tl.exp(x)


@triton.jit
def offset_at(cu, index, rows):
    """One offset of packed sequences, clamped so that it never points outside the tensor."""
    return tl.minimum(tl.maximum(tl.load(cu + index).to(tl.int64), 0), rows)


@triton.jit
def find_sequence(cu, sequences, rows, tile, BLOCK: tl.constexpr):
    """The packed sequence that `tile` belongs to, and the tile's number in it.

    The tiles of sequence b are numbered from cu[b] // BLOCK + b on. This gives each sequence enough
    numbers (some are unused) without a sum over the preceding sequences.
    """
    low = 0
    high = sequences
    while low + 1 < high:
        middle = (low + high) // 2
        if offset_at(cu, middle, rows) // BLOCK + middle <= tile:
            low = middle
        else:
            high = middle
    return low, tile - (offset_at(cu, low, rows) // BLOCK).to(tl.int32) - low


@triton.jit
def locate(program, tiles, batch, section, heads: tl.constexpr, FLIP: tl.constexpr):
    """(batch entry, head, tile) of a program for sequences that are not packed.

    Programs run roughly in order. Heads are grouped into sections whose keys and values together
    fit the cache. Within a section, the first tile of every head comes first, or with FLIP the
    last one: the one with the most work, so that no long program starts late.
    """
    first = program // (section * tiles) * section
    width = tl.minimum(section, batch * heads - first)
    inside = program - first * tiles
    tile = inside // width
    head = first + inside % width
    return head // heads, head % heads, (tiles - 1 - tile if FLIP else tile)


@triton.jit
def load_tile(x, batch, head, row, rows, ROWS: tl.constexpr, SIZE: tl.constexpr,
              BLOCK: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """Load a (ROWS, BLOCK) tile of one head from `row` on; columns from SIZE on are zero.

    With MASKED, rows from `rows` on are zero, too; else all rows of the tile must exist.
    """
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    start = x.ptr + (batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head + row * x.row)
    pointers = start + (r.to(P.OFFSET) * x.row + c.to(P.OFFSET) * x.col)
    if MASKED and SIZE != BLOCK:
        return tl.load(pointers, mask=(r < rows) & (c < SIZE), other=0)
    elif MASKED:
        return tl.load(pointers, mask=r < rows, other=0)
    elif SIZE != BLOCK:
        return tl.load(pointers, mask=c < SIZE, other=0)
    else:
        return tl.load(pointers)


@triton.jit
def load_step(x, batch, head, row, rows, ROWS: tl.constexpr, SIZE: tl.constexpr,
              BLOCK: tl.constexpr, MASKED: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """`load_tile` for loops; with TMA from a descriptor, which gives zero outside its tensor."""
    if P.TMA:
        return x.load([batch, head, row.to(tl.int32), 0]).reshape(ROWS, BLOCK)
    else:
        return load_tile(x, batch, head, row, rows, ROWS, SIZE, BLOCK, MASKED, P)


@triton.jit
def store_tile(x, batch, head, row, rows, value, ROWS: tl.constexpr, SIZE: tl.constexpr,
               BLOCK: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """Write the first `rows` rows and SIZE columns of a (ROWS, BLOCK) tile."""
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    start = x.ptr + (batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head + row * x.row)
    pointers = start + (r.to(P.OFFSET) * x.row + c.to(P.OFFSET) * x.col)
    tl.store(pointers, value.to(x.ptr.dtype.element_ty), mask=(r < rows) & (c < SIZE))


@triton.jit
def locate_tile(program, masks, batch, S, T, section, HEADS: tl.constexpr, QUERIES: tl.constexpr,
                FLIP: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """The (sequence, head, tile) of a program, and first rows and lengths of its queries and keys.

    Tiles are tiles of queries (QUERIES) or of keys. For packed tensors S and T are the numbers of
    rows of all sequences.
    """
    if P.PACKED:
        if QUERIES:
            b, tile = find_sequence(masks.cu_q, batch, S, program // HEADS, P.M)
        else:
            b, tile = find_sequence(masks.cu_k, batch, T, program // HEADS, P.N)
        q_first = offset_at(masks.cu_q, b, S)
        k_first = offset_at(masks.cu_k, b, T)
        S = tl.maximum(offset_at(masks.cu_q, b + 1, S) - q_first, 0).to(tl.int32)
        T = tl.maximum(offset_at(masks.cu_k, b + 1, T) - k_first, 0).to(tl.int32)
        head = program % HEADS
    else:
        tiles = tl.cdiv(S * P.GROUP, P.M) if QUERIES else tl.cdiv(T, P.N)
        b, head, tile = locate(program, tiles, batch, section, HEADS, FLIP)
        q_first = tl.full([], 0, tl.int64)
        k_first = tl.full([], 0, tl.int64)
    return b, head, tile, q_first, k_first, S, T


@triton.jit
def load_rows(x, batch, head, row, rows, other, ROWS: tl.constexpr, P: tl.constexpr):
    """Load one number for each of ROWS rows of a head; `other` for rows from `rows` on."""
    r = tl.arange(0, ROWS)
    start = x.ptr + (batch.to(tl.int64) * x.batch + head.to(tl.int64) * x.head + row * x.row)
    return tl.load(start + r.to(P.OFFSET) * x.row, mask=r < rows, other=other)


@triton.jit
def dot_add(a, b, acc, P: tl.constexpr):
    """acc + a b in the accumulator's precision; float32 is rounded to tf32 only if allowed."""
    if INTERPRETED and a.dtype == tl.bfloat16:  # the interpreter would multiply its bits
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=P.PRECISION, out_dtype=P.ACC)


@triton.jit
def dot(a, b, ROWS: tl.constexpr, COLUMNS: tl.constexpr, P: tl.constexpr):
    """a b in the accumulator's precision."""
    return dot_add(a, b, tl.full([ROWS, COLUMNS], 0, P.ACC), P)


@triton.jit
def visible_keys(first, last, S, T, left, right, P: tl.constexpr):
    """Ranges (begin, end) of the keys that any, and that all, of the queries first..last see."""
    begin, end, all_begin, all_end = 0, T, 0, T
    if P.LEFT:
        begin = tl.maximum(0, first + (T - S) - left)
        all_begin = tl.maximum(0, last + (T - S) - left)
    if P.RIGHT:
        end = tl.minimum(T, last + (T - S) + right + 1)
        all_end = tl.minimum(T, first + (T - S) + right + 1)
    return begin, end, all_begin, all_end


@triton.jit
def visible_queries(first, last, S, T, left, right, P: tl.constexpr):
    """Ranges (begin, end) of the queries that see any, and all, of the keys first..last."""
    begin, end, all_begin, all_end = 0, S, 0, S
    if P.RIGHT:
        begin = tl.maximum(0, first - (T - S) - right)
        all_begin = tl.maximum(0, last - (T - S) - right)
    if P.LEFT:
        end = tl.minimum(S, last - (T - S) + left + 1)
        all_end = tl.minimum(S, first - (T - S) + left + 1)
    return begin, end, all_begin, all_end


@triton.jit
def loop_bounds(begin, end, all_begin, all_end, BLOCK: tl.constexpr):
    """Bounds of three loops in steps of BLOCK: the first and the last need a mask.

    The bounds are increasing multiples of BLOCK; loop n runs from bound n to bound n + 1.
    """
    start = tl.maximum(begin, 0) // BLOCK * BLOCK
    stop = tl.maximum(start, (end + BLOCK - 1) // BLOCK * BLOCK)
    free = tl.minimum(tl.maximum(start, (all_begin + BLOCK - 1) // BLOCK * BLOCK), stop)
    bound = tl.minimum(tl.maximum(free, tl.maximum(all_end, 0) // BLOCK * BLOCK), stop)
    return start, free, bound, stop


@triton.jit
def apply_softcap(x, limit, P: tl.constexpr):
    """(limit * tanh(x / limit), its derivative)."""
    if P.NARROW:
        e = tl.exp(-2.0 * tl.abs(x / limit))
        t = (1.0 - e) / (1.0 + e)
        t = tl.where(x < 0, -t, t)
    else:
        t = tanh(x / limit, True)
    return limit * t, 1.0 - t * t


@triton.jit
def modify_scores(s, i, j, batch, head, row_ok, slope, S, T, left, right, masks, scalars,
                  MASKED: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """(scores times `P.UNIT`, derivative of the softcap) from products q . k.

    Scores of invisible keys are -inf. `batch` and `head` locate bias and padding, `slope` is
    ALiBi's. Without MASKED, window and length let all queries of the tile see all its keys.
    """
    x = s * from_bits(scalars.scale, P)
    derivative = 1.0
    if P.SOFTCAP:
        x, derivative = apply_softcap(x, from_bits(scalars.softcap, P), P)
    if P.BIAS == "float":
        b = tl.load(bias_pointers(masks.bias, i, j, batch, head), mask=row_ok & (j < T), other=0)
        x += b.to(P.ACC)
    if P.ALIBI:
        x -= slope * tl.abs(i + (T - S) - j).to(P.ACC)
    x *= P.UNIT
    if MASKED:
        x = tl.where(in_window(i, j, S, T, left, right, P), x, -INF)
    if P.BIAS == "bool":
        b = tl.load(bias_pointers(masks.bias, i, j, batch, head), mask=row_ok & (j < T), other=1)
        x = tl.where(b != 0, x, -INF)
    if P.PADDING:
        x = tl.where(is_padding(masks.padding, batch, j, T), -INF, x)
    return x, derivative


@triton.jit
def in_window(i, j, S, T, left, right, P: tl.constexpr):
    """Whether window and length let query i see key j."""
    seen = (j < T) & (i >= 0)
    if P.LEFT:
        seen &= i + (T - S) - j <= left
    if P.RIGHT:
        seen &= j - (i + (T - S)) <= right
    return seen


@triton.jit
def probabilities(s, i, j, batch, head, row_ok, lse, lse_low, slope, S, T, left, right, masks,
                  scalars, MASKED: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """(probabilities, derivative of the softcap) from products q . k and the log-sum-exp.

    `lse` must be multiplied by `P.UNIT`, and be inf for queries that do not exist or see no key.
    """
    derivative = 1.0
    if P.PLAIN:
        if MASKED:
            s = tl.where(in_window(i, j, S, T, left, right, P), s, -INF)
        if P.PADDING:
            s = tl.where(is_padding(masks.padding, batch, j, T), -INF, s)
        s = s * (from_bits(scalars.scale, P) * P.UNIT) - lse
    else:
        s, derivative = modify_scores(s, i, j, batch, head, row_ok, slope, S, T, left, right,
                                      masks, scalars, MASKED, P)  # fmt: skip
        s -= lse
    if not P.BASE2:
        s -= lse_low
    return exp_scores(s, P), derivative


@triton.jit
def load_row_stats(
    lse, lse_low, delta, batch, head, row, rows, ROWS: tl.constexpr, P: tl.constexpr
):
    """(lse, its rounding error, delta) of ROWS queries, as `probabilities` takes them."""
    total = load_rows(lse, batch, head, row, rows, INF, ROWS, P)
    low = load_rows(lse_low, batch, head, row, rows, 0, ROWS, P)
    total = tl.where(total == -INF, INF, total * P.UNIT)
    return total, low, load_rows(delta, batch, head, row, rows, 0, ROWS, P)


@triton.jit
def is_padding(padding, batch, j, T):
    """Whether the padding mask hides key j."""
    pointer = padding.ptr + batch.to(tl.int64) * padding.batch + j.to(tl.int64) * padding.col
    return tl.load(pointer, mask=j < T, other=0) != 0


@triton.jit
def bias_pointers(bias, i, j, batch, head):
    """Pointers to the bias of queries i and keys j."""
    row = (
        batch.to(tl.int64) * bias.batch + head.to(tl.int64) * bias.head + i.to(tl.int64) * bias.row
    )
    return bias.ptr + row + j.to(tl.int64) * bias.col


@triton.jit
def dropout_keep(seed, threshold, stream, i, j, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Mask (QUERIES, KEYS), True where dropout keeps a weight.

    i is (QUERIES, 1), j the tile's first key. The bits are those of `reference/philox.py`: four
    keys share a counter, and key j uses its word j modulo 4.
    """
    quarter = j // 4 + tl.arange(0, KEYS // 4)[None, :]
    zero = tl.full([QUERIES, KEYS // 4], 0, tl.int32)
    a, b, c, d = tl.philox(tl.load(seed), zero + quarter, zero + i, zero + stream, zero)
    words = tl.join(tl.join(a, c), tl.join(b, d)).reshape(QUERIES, KEYS)
    return words >= (tl.full([], 0, tl.int64) + threshold).to(tl.uint32)
