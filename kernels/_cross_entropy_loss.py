"""The Triton kernels of cross-entropy that compute the loss; cross_entropy.py launches them.

A pointer to an absent tensor is None. `strides` are those of the two token dimensions and of the
classes; `inner` is the size of the second token dimension.
"""

import triton
import triton.language as tl

from ._cross_entropy_row import (
    add_block,
    cap,
    empty_sums,
    row_loss,
    row_start,
    shift_of,
    spread,
)
from ._math import exp


@triton.jit
def load_target(
    target,
    weight,
    x,
    stride,
    row,
    classes,
    ignore_index,
    P: tl.constexpr,
):
    """(class, its z, its weight, whether it is not ignored, whether it is in range)."""
    index = tl.full([], 0, tl.int64)
    kept = index == 0
    good = index == 0
    label = tl.full([], 0, P.ACC)
    label_weight = tl.full([], 1, P.ACC)
    if P.BY_INDEX:
        index = tl.load(target + row)
        kept = index != ignore_index
        good = (index >= 0) & (index < classes)
        label = cap(tl.load(x + index * stride, good, other=0.0).to(P.ACC), P)
        if weight is not None:
            label_weight = tl.load(weight + index, good, other=0.0).to(P.ACC)
    return index, label, label_weight, kept, good


@triton.jit
def sweep(x, weight, probabilities, begin, end, classes, stride, class_stride, P: tl.constexpr):
    """The six sums over the classes `begin` to `end`, and the largest raw logit of these."""
    sums = empty_sums(classes, P)
    best = tl.full([], 0, P.ACC) - float("inf")
    for start in range(begin, end, P.BLOCK):
        column = start + tl.arange(0, P.BLOCK)
        mask = column < end
        value = tl.load(x + column.to(tl.int64) * stride, mask, other=0.0).to(P.ACC)
        u = value
        if P.SPREAD:
            u = spread(weight, probabilities, column, mask, classes, class_stride, P)
        z = cap(value, P)
        sums, best = add_block(sums, best, value, z, u, column, mask, classes, P)
    return sums, best


@triton.jit
def store_row(
    row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, P: tl.constexpr
):
    tl.store(losses + row, loss)
    tl.store(z_losses + row, z_term)
    tl.store(lses + row, lse)
    if P.STATS:
        tl.store(argmaxes + row, tl.where(sums[5] < classes, sums[5], sums[4]).to(tl.int64))


@triton.jit
def _forward(
    logits, target, weight, probabilities, losses, z_losses, lses, argmaxes, partial,
    classes, split, inner, strides, probability_strides, ignore_index,
    P: tl.constexpr,
):  # fmt: skip
    """Compute the loss of a row or, with `partial` (7, rows, programs), sums over a part of it."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row_start(row, strides, inner)
    q = None
    if probabilities is not None:
        q = probabilities + row_start(row, probability_strides, inner)
    _, label, label_weight, kept, good = load_target(
        target, weight, x, strides[2], row, classes, ignore_index, P
    )
    begin = tl.program_id(1) * split
    end = tl.minimum(begin + split, classes)
    if not P.STATS:
        end = tl.where(kept, end, 0)  # an ignored row is not read
    sums, best = sweep(
        x, weight, q, begin, end, classes, strides[2], probability_strides[2],
        P,
    )  # fmt: skip
    if partial is None:
        loss, z_term, lse = row_loss(sums, label, label_weight, kept, good, P)
        store_row(
            row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, P
        )  # fmt: skip
    else:
        parts = tl.num_programs(1)
        place = partial + row * parts + tl.program_id(1)
        step = tl.num_programs(0).to(tl.int64) * parts
        tl.store(place, sums[0])
        tl.store(place + step, sums[1])
        tl.store(place + 2 * step, sums[2])
        tl.store(place + 3 * step, sums[3])
        tl.store(place + 4 * step, sums[4].to(P.ACC))
        tl.store(place + 5 * step, sums[5].to(P.ACC))
        tl.store(place + 6 * step, best)


@triton.jit
def _combine(
    logits, target, weight, losses, z_losses, lses, argmaxes, partial,
    classes, parts, inner, strides, ignore_index,
    P: tl.constexpr,
):  # fmt: skip
    """Compute the loss of a row from the sums over its parts."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row_start(row, strides, inner)
    _, label, label_weight, kept, good = load_target(
        target, weight, x, strides[2], row, classes, ignore_index, P
    )
    part = tl.arange(0, P.BLOCK)
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
    loss, z_term, lse = row_loss(sums, label, label_weight, kept, good, P)
    store_row(
        row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, P
    )  # fmt: skip


@triton.jit
def _totals(target, weight, totals, tokens, classes, ignore_index, BLOCK: tl.constexpr):
    """Compute summed weight and number of the targets that count: the divisors of "mean"."""
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
    """Compute the sum over all rows, or with `totals` the mean."""
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
        tl.store(loss, sum)  # not + z_sum, which is 0 / 0 without tokens
    if STATS:
        tl.store(z_loss, z_sum)
