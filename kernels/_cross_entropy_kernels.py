"""The Triton kernels of cross-entropy; cross_entropy.py says when which is launched.

Pointers to what is not there are None; `strides` are those of two token dimensions, of which
`inner` is the size of the second, and of the classes.
"""

import triton
import triton.language as tl
from llama_fast.kernels._cross_entropy_row import (
    add_block,
    cap,
    empty_sums,
    gradient,
    row_loss,
    row_start,
    shift_of,
    spread,
    squash,
    unsquash,
)
from llama_fast.kernels._math import exp

# Of a log-sum-exp: beyond, float64 has not enough digits left for the logarithm in it.
TOO_LARGE = tl.constexpr(1e9)


@triton.jit
def _target(
    target,
    weight,
    x,
    stride,
    row,
    classes,
    ignore_index,
    SOFTCAP: tl.constexpr,
    EXACT: tl.constexpr,
    BY_INDEX: tl.constexpr,
    ACC: tl.constexpr,
):
    """(class, its capped logit, its weight, whether it counts, whether it is in range)."""
    index = tl.full([], 0, tl.int64)
    kept = index == 0
    good = index == 0
    label = tl.full([], 0, ACC)
    label_weight = tl.full([], 1, ACC)
    if BY_INDEX:
        index = tl.load(target + row)
        kept = index != ignore_index
        good = (index >= 0) & (index < classes)
        label = cap(tl.load(x + index * stride, good, other=0.0).to(ACC), SOFTCAP, EXACT)
        if weight is not None:
            label_weight = tl.load(weight + index, good, other=0.0).to(ACC)
    return index, label, label_weight, kept, good


@triton.jit
def _sweep(
    x, weight, probabilities, begin, end, classes, stride, class_stride,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, EXACT: tl.constexpr, SPREAD: tl.constexpr,
    STATS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of the classes from `begin` to `end`, and their largest raw logit."""
    sums = empty_sums(ACC, classes)
    best = tl.full([], 0, ACC) - float("inf")
    for start in range(begin, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = column < end
        value = tl.load(x + column.to(tl.int64) * stride, mask, other=0.0).to(ACC)
        u = value
        if SPREAD:
            u = spread(
                weight, probabilities, column, mask, classes, class_stride, SMOOTHING, ACC
            )  # fmt: skip
        z = cap(value, SOFTCAP, EXACT)
        sums, best = add_block(sums, best, value, z, u, column, mask, classes, SPREAD, STATS)
    return sums, best


@triton.jit
def _store_row(
    row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, STATS: tl.constexpr
):
    tl.store(losses + row, loss)
    tl.store(z_losses + row, z_term)
    tl.store(lses + row, lse)
    if STATS:
        tl.store(argmaxes + row, tl.where(sums[5] < classes, sums[5], sums[4]).to(tl.int64))


@triton.jit
def _forward(
    logits, target, weight, probabilities, losses, z_losses, lses, argmaxes, partial,
    classes, split, inner, strides, probability_strides, ignore_index,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, Z_LOSS: tl.constexpr, EXACT: tl.constexpr,
    SPREAD: tl.constexpr, BY_INDEX: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of a row; or, where `partial` (7, rows, programs) is given, the sums of a part of it."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row_start(row, strides, inner)
    q = None
    if probabilities is not None:
        q = probabilities + row_start(row, probability_strides, inner)
    _, label, label_weight, kept, good = _target(
        target, weight, x, strides[2], row, classes, ignore_index, SOFTCAP, EXACT, BY_INDEX, ACC
    )
    begin = tl.program_id(1) * split
    end = tl.minimum(begin + split, classes)
    if not STATS:
        end = tl.where(kept, end, 0)  # an ignored row is not read
    sums, best = _sweep(
        x, weight, q, begin, end, classes, strides[2], probability_strides[2],
        SMOOTHING, SOFTCAP, EXACT, SPREAD, STATS, ACC, BLOCK,
    )  # fmt: skip
    if partial is None:
        loss, z_term, lse = row_loss(
            sums, label, label_weight, kept, good, SMOOTHING, SPREAD, BY_INDEX, Z_LOSS
        )
        _store_row(
            row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, STATS
        )  # fmt: skip
    else:
        parts = tl.num_programs(1)
        place = partial + row * parts + tl.program_id(1)
        step = tl.num_programs(0).to(tl.int64) * parts
        tl.store(place, sums[0])
        tl.store(place + step, sums[1])
        tl.store(place + 2 * step, sums[2])
        tl.store(place + 3 * step, sums[3])
        tl.store(place + 4 * step, sums[4].to(ACC))
        tl.store(place + 5 * step, sums[5].to(ACC))
        tl.store(place + 6 * step, best)


@triton.jit
def _combine(
    logits, target, weight, losses, z_losses, lses, argmaxes, partial,
    classes, parts, inner, strides, ignore_index,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, Z_LOSS: tl.constexpr, EXACT: tl.constexpr,
    SPREAD: tl.constexpr, BY_INDEX: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of a row from the sums of its parts."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row_start(row, strides, inner)
    _, label, label_weight, kept, good = _target(
        target, weight, x, strides[2], row, classes, ignore_index, SOFTCAP, EXACT, BY_INDEX, ACC
    )
    part = tl.arange(0, BLOCK)
    mask = part < parts
    place = partial + row * parts + part
    step = tl.num_programs(0).to(tl.int64) * parts
    largest = tl.load(place, mask, other=-float("inf"))
    whole = tl.max(largest, axis=0)
    shift = shift_of(whole)
    exp_sums = tl.load(place + step, mask, other=0.0)
    exp_sum = tl.sum(exp_sums * exp(largest - shift), axis=0)
    u_sums = tl.load(place + 2 * step, mask, other=0.0)
    uz_sums = tl.load(place + 3 * step, mask, other=0.0)
    uz_sum = tl.sum(uz_sums + u_sums * (shift_of(largest) - shift), axis=0)
    tops = tl.load(place + 6 * step, mask, other=-float("inf"))
    top = tl.max(tops, axis=0)
    arguments = tl.load(place + 4 * step, mask, other=0.0).to(tl.int32)
    argmax = tl.min(tl.where(mask & (tops == top), arguments, classes), axis=0)
    nans = tl.load(place + 5 * step, mask, other=float("inf"))
    nan_at = tl.minimum(tl.min(nans, axis=0), classes).to(tl.int32)
    sums = (whole, exp_sum, tl.sum(u_sums, axis=0), uz_sum, argmax, nan_at)
    loss, z_term, lse = row_loss(
        sums, label, label_weight, kept, good, SMOOTHING, SPREAD, BY_INDEX, Z_LOSS
    )
    _store_row(
        row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, STATS
    )  # fmt: skip


@triton.jit
def _scales(grad_loss, grad_stride, grad_lse, totals, row, kept):
    """The upstream gradients of a row's cross-entropy, z-loss and lse."""
    ce_scale = tl.full([], 1, tl.float64)
    if grad_loss is not None:
        ce_scale = tl.load(grad_loss + row * grad_stride).to(tl.float64)
    z_scale = ce_scale
    if totals is not None:
        z_scale = ce_scale / tl.load(totals + 1)
        ce_scale = ce_scale / tl.load(totals)
    lse_scale = tl.full([], 0, tl.float64)
    if grad_lse is not None:
        lse_scale = tl.load(grad_lse + row).to(tl.float64)
    return tl.where(kept, ce_scale, 0.0), tl.where(kept, z_scale, 0.0), lse_scale


@triton.jit
def _sums_again(
    x, stride, classes, SOFTCAP: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(the largest logit of a row, log of the sum of exponentials relative to it).

    For logits so large that the second is lost in their sum (a row of the lowest numbers).
    """
    largest = tl.full([], 0, ACC) - float("inf")
    total = tl.full([], 0, tl.float64)
    for begin in range(0, classes, BLOCK):
        column = begin + tl.arange(0, BLOCK).to(tl.int64)
        value = tl.load(x + column * stride, column < classes, other=-float("inf")).to(ACC)
        z = unsquash(squash(value, SOFTCAP, EXACT), SOFTCAP)
        z = tl.where(column < classes, z, -float("inf"))
        new = tl.maximum(largest, tl.max(z, axis=0))
        shift = shift_of(new)
        total = total * exp(largest - shift).to(tl.float64)
        total += tl.sum(exp(z - shift), axis=0).to(tl.float64)
        largest = new
    return largest, tl.log(total).to(ACC)


@triton.jit
def _backward(
    logits, out, lses, target, weight, weight_sum, grad_loss, grad_lse, totals,
    classes, inner, strides, out_strides, grad_stride, ignore_index,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, Z_LOSS: tl.constexpr, EXACT: tl.constexpr,
    SPREAD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a part of a row, for class indices."""
    blocks = tl.cdiv(classes, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = column < classes
    x = logits + row_start(row, strides, inner)
    index = tl.load(target + row)
    kept = index != ignore_index
    good = (index >= 0) & (index < classes)
    label_weight = tl.full([], 1, ACC)
    if weight is not None:
        label_weight = tl.load(weight + index, good, other=0.0).to(ACC)
    ce_scale, z_scale, lse_scale = _scales(grad_loss, grad_stride, grad_lse, totals, row, kept)
    graded = kept | (lse_scale != 0)
    lse = tl.load(lses + row)
    at_label = tl.where(kept, (1.0 - SMOOTHING) * label_weight * ce_scale, 0.0)
    coefficient = at_label + 2.0 * Z_LOSS * lse * z_scale
    if SPREAD:
        u_sum = tl.full([], SMOOTHING, tl.float64)
        if weight is not None:
            u_sum *= tl.load(weight_sum) / classes
        coefficient += u_sum * ce_scale
    coefficient = tl.where(good | (kept == 0), coefficient, float("nan")) + lse_scale
    # In two pieces: of logits near 1e4 one float32 would leave p three correct digits.
    high = lse.to(ACC)
    low = tl.where(tl.abs(lse) == float("inf"), 0.0, lse - high.to(tl.float64)).to(ACC)
    if (tl.abs(lse) > TOO_LARGE) & (tl.abs(lse) < float("inf")) & graded:
        high, low = _sums_again(x, strides[2], classes, SOFTCAP, EXACT, ACC, BLOCK)
        if logits.to(tl.int64) == out.to(tl.int64):  # others have overwritten parts of the row
            low = low * float("nan")

    place = column.to(tl.int64)
    there = tl.where(graded, classes, 0)  # an ignored row is not read
    value = tl.load(x + place * strides[2], column < there, other=0.0).to(ACC)
    t = squash(value, SOFTCAP, EXACT)
    u = t
    if SPREAD:
        u = spread(weight, None, column, mask, classes, 0, SMOOTHING, ACC)
    p = exp((unsquash(t, SOFTCAP) - high) - low) * coefficient.to(ACC)
    g = gradient(
        t, p, u, column, index, at_label.to(ACC), ce_scale.to(ACC), graded, SOFTCAP, SPREAD, True
    )  # fmt: skip
    tl.store(out + row_start(row, out_strides, inner) + place * out_strides[2], g, mask)


@triton.jit
def _fused(
    logits, out, target, weight, probabilities, grad_loss, grad_lse, totals,
    losses, z_losses, lses, argmaxes,
    classes, inner, strides, probability_strides, out_strides, grad_stride, ignore_index,
    SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, Z_LOSS: tl.constexpr, EXACT: tl.constexpr,
    SPREAD: tl.constexpr, BY_INDEX: tl.constexpr, STATS: tl.constexpr, ACC: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of a row; `out` may be `logits`."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row_start(row, strides, inner)
    out = out + row_start(row, out_strides, inner)
    q = None
    if probabilities is not None:
        q = probabilities + row_start(row, probability_strides, inner)
    # The label's logit is read before the reductions below, and so before it is overwritten.
    index, label, label_weight, kept, good = _target(
        target, weight, x, strides[2], row, classes, ignore_index, SOFTCAP, EXACT, BY_INDEX, ACC
    )
    ce_scale, z_scale, lse_scale = _scales(grad_loss, grad_stride, grad_lse, totals, row, kept)
    graded = kept | (lse_scale != 0)
    columns = tl.arange(0, BLOCK)
    if WHOLE:
        mask = columns < classes
        value = tl.load(x + columns.to(tl.int64) * strides[2], mask, other=0.0).to(ACC)
        u = value
        if SPREAD:
            u = spread(
                weight, q, columns, mask, classes, probability_strides[2], SMOOTHING, ACC
            )  # fmt: skip
        t = squash(value, SOFTCAP, EXACT)
        z = unsquash(t, SOFTCAP)
        sums = empty_sums(ACC, classes)
        best = tl.full([], 0, ACC) - float("inf")
        sums, best = add_block(sums, best, value, z, u, columns, mask, classes, SPREAD, STATS)
    else:
        sums, best = _sweep(
            x, weight, q, 0, classes, classes, strides[2], probability_strides[2],
            SMOOTHING, SOFTCAP, EXACT, SPREAD, STATS, ACC, BLOCK,
        )  # fmt: skip
    loss, z_term, lse = row_loss(
        sums, label, label_weight, kept, good, SMOOTHING, SPREAD, BY_INDEX, Z_LOSS
    )
    if losses is not None:
        _store_row(
            row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, STATS
        )  # fmt: skip

    at_label = tl.where(kept, (1.0 - SMOOTHING) * label_weight * ce_scale, 0.0)
    coefficient = 2.0 * Z_LOSS * lse * z_scale + lse_scale
    if BY_INDEX:
        coefficient += at_label
    if SPREAD:
        coefficient += sums[2].to(tl.float64) * ce_scale
    coefficient = coefficient / sums[1].to(tl.float64)
    coefficient = tl.where(good | (kept == 0), coefficient, float("nan")).to(ACC)
    at_label = at_label.to(ACC)
    ce_scale = ce_scale.to(ACC)
    shift = shift_of(sums[0])
    if WHOLE:
        g = gradient(
            t, exp(unsquash(t, SOFTCAP) - shift) * coefficient, u, columns, index, at_label,
            ce_scale, graded, SOFTCAP, SPREAD, BY_INDEX,
        )  # fmt: skip
        tl.store(out + columns.to(tl.int64) * out_strides[2], g, mask)
    else:
        for start in range(0, classes, BLOCK):
            column = start + columns
            mask = column < classes
            place = column.to(tl.int64)
            value = tl.load(x + place * strides[2], mask, other=0.0).to(ACC)
            u = value
            if SPREAD:
                u = spread(
                    weight, q, column, mask, classes, probability_strides[2], SMOOTHING, ACC
                )  # fmt: skip
            t = squash(value, SOFTCAP, EXACT)
            g = gradient(
                t, exp(unsquash(t, SOFTCAP) - shift) * coefficient, u, column, index, at_label,
                ce_scale, graded, SOFTCAP, SPREAD, BY_INDEX,
            )  # fmt: skip
            tl.store(out + place * out_strides[2], g, mask)


@triton.jit
def _totals(target, weight, totals, tokens, classes, ignore_index, BLOCK: tl.constexpr):
    """Summed weight of the targets that count, and their number: what "mean" divides by."""
    weights = tl.zeros([BLOCK], tl.float64)
    counts = tl.zeros([BLOCK], tl.float64)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        index = tl.load(target + token, token < tokens, other=ignore_index)
        kept = index != ignore_index
        counts += tl.where(kept, 1.0, 0.0)
        if weight is not None:
            good = kept & (index >= 0) & (index < classes)
            weights += tl.load(weight + index, good, other=0.0).to(tl.float64)
    count = tl.sum(counts, axis=0)
    tl.store(totals + 1, count)
    if weight is not None:
        tl.store(totals, tl.sum(weights, axis=0))
    else:
        tl.store(totals, count)


@triton.jit
def _reduce(
    losses,
    z_losses,
    totals,
    loss,
    z_loss,
    tokens,
    Z_LOSS: tl.constexpr,
    STATS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of all rows, or their mean where there are `totals`."""
    sums = tl.zeros([BLOCK], tl.float64)
    z_sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        sums += tl.load(losses + token, token < tokens, other=0.0)
        z_sums += tl.load(z_losses + token, token < tokens, other=0.0)
    sum = tl.sum(sums, axis=0)
    z_sum = tl.sum(z_sums, axis=0)
    if totals is not None:
        sum = sum / tl.load(totals)
        z_sum = z_sum / tl.load(totals + 1)
    if Z_LOSS:
        tl.store(loss, sum + z_sum)
    else:
        tl.store(loss, sum)  # the mean of no token is NaN; adding 0 / 0 would say so of more
    if STATS:
        tl.store(z_loss, z_sum)
