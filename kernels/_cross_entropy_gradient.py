"""The Triton kernels of cross-entropy that compute its gradient; cross_entropy.py launches them.

Their arguments have the names and meanings of those in _cross_entropy_loss.py.
"""

import triton
import triton.language as tl

from ._cross_entropy_loss import load_target, store_row, sweep
from ._cross_entropy_row import (
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
from ._math import exp

# In a log-sum-exp larger than this, the logarithm of the sum has too few digits left even in
# float64; csrc/cuda uses the same bound.
TOO_LARGE = tl.constexpr(1e9)


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
def _sums_again(x, stride, classes, P: tl.constexpr):
    """(the largest logit of a row, log of the sum of exponentials relative to it).

    This is used if logits are so large that the second number is lost in the sum of the two.
    """
    largest = tl.full([], 0, P.ACC) - float("inf")
    total = tl.full([], 0, tl.float64)
    for begin in range(0, classes, P.BLOCK):
        column = begin + tl.arange(0, P.BLOCK).to(tl.int64)
        value = tl.load(x + column * stride, column < classes, other=-float("inf")).to(P.ACC)
        z = cap(value, P)
        z = tl.where(column < classes, z, -float("inf"))
        new = tl.maximum(largest, tl.max(z, axis=0))
        shift = shift_of(new)
        total = total * exp(largest - shift).to(tl.float64)
        total += tl.sum(exp(z - shift), axis=0).to(tl.float64)
        largest = new
    return largest, tl.log(total).to(P.ACC)


@triton.jit
def _backward(
    logits, out, lses, target, weight, weight_sum, grad_loss, grad_lse, totals,
    classes, inner, strides, out_strides, grad_stride, ignore_index,
    P: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a part of a row, for class indices."""
    blocks = tl.cdiv(classes, P.BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * P.BLOCK + tl.arange(0, P.BLOCK)
    mask = column < classes
    x = logits + row_start(row, strides, inner)
    index = tl.load(target + row)
    kept = index != ignore_index
    good = (index >= 0) & (index < classes)
    label_weight = tl.full([], 1, P.ACC)
    if weight is not None:
        label_weight = tl.load(weight + index, good, other=0.0).to(P.ACC)
    ce_scale, z_scale, lse_scale = _scales(grad_loss, grad_stride, grad_lse, totals, row, kept)
    graded = kept | (lse_scale != 0)
    lse = tl.load(lses + row)
    at_label = tl.where(kept, (1.0 - P.SMOOTHING) * label_weight * ce_scale, 0.0)
    coefficient = at_label + 2.0 * P.Z_LOSS * lse * z_scale
    if P.SPREAD:
        u_sum = tl.full([], P.SMOOTHING, tl.float64)
        if weight is not None:
            u_sum *= tl.load(weight_sum) / classes
        coefficient += u_sum * ce_scale
    coefficient = tl.where(good | (kept == 0), coefficient, float("nan")) + lse_scale
    # lse as a sum of two numbers: as one float32, logits near 1e4 would leave p three digits.
    high = lse.to(P.ACC)
    low = tl.where(tl.abs(lse) == float("inf"), 0.0, lse - high.to(tl.float64)).to(P.ACC)
    if (tl.abs(lse) > TOO_LARGE) & (tl.abs(lse) < float("inf")) & graded:
        high, low = _sums_again(x, strides[2], classes, P)
        if logits.to(tl.int64) == out.to(tl.int64):  # other programs have overwritten the row
            low = low * float("nan")

    place = column.to(tl.int64)
    there = tl.where(graded, classes, 0)  # an ignored row is not read
    value = tl.load(x + place * strides[2], column < there, other=0.0).to(P.ACC)
    t = squash(value, P)
    u = t
    if P.SPREAD:
        u = spread(weight, None, column, mask, classes, 0, P)
    p = exp((unsquash(t, P) - high) - low) * coefficient.to(P.ACC)
    g = gradient(
        t, p, u, column, index, at_label.to(P.ACC), ce_scale.to(P.ACC), graded, P
    )  # fmt: skip
    tl.store(out + row_start(row, out_strides, inner) + place * out_strides[2], g, mask)


@triton.jit
def _fused(
    logits, out, target, weight, probabilities, grad_loss, grad_lse, totals,
    losses, z_losses, lses, argmaxes,
    classes, inner, strides, probability_strides, out_strides, grad_stride, ignore_index,
    WHOLE: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Compute loss and gradient of a row; `out` may be `logits`."""
    row = tl.program_id(0).to(tl.int64)
    x = logits + row_start(row, strides, inner)
    out = out + row_start(row, out_strides, inner)
    q = None
    if probabilities is not None:
        q = probabilities + row_start(row, probability_strides, inner)
    # The label's logit is read before the reductions below, and so before it is overwritten.
    index, label, label_weight, kept, good = load_target(
        target, weight, x, strides[2], row, classes, ignore_index, P
    )
    ce_scale, z_scale, lse_scale = _scales(grad_loss, grad_stride, grad_lse, totals, row, kept)
    graded = kept | (lse_scale != 0)
    columns = tl.arange(0, P.BLOCK)
    if WHOLE:
        mask = columns < classes
        value = tl.load(x + columns.to(tl.int64) * strides[2], mask, other=0.0).to(P.ACC)
        u = value
        if P.SPREAD:
            u = spread(weight, q, columns, mask, classes, probability_strides[2], P)
        t = squash(value, P)
        z = unsquash(t, P)
        sums = empty_sums(classes, P)
        best = tl.full([], 0, P.ACC) - float("inf")
        sums, best = add_block(sums, best, value, z, u, columns, mask, classes, P)
    else:
        sums, best = sweep(
            x, weight, q, 0, classes, classes, strides[2], probability_strides[2],
            P,
        )  # fmt: skip
    loss, z_term, lse = row_loss(sums, label, label_weight, kept, good, P)
    if losses is not None:
        store_row(
            row, sums, loss, z_term, lse, losses, z_losses, lses, argmaxes, classes, P
        )  # fmt: skip

    at_label = tl.where(kept, (1.0 - P.SMOOTHING) * label_weight * ce_scale, 0.0)
    coefficient = 2.0 * P.Z_LOSS * lse * z_scale + lse_scale
    if P.BY_INDEX:
        coefficient += at_label
    if P.SPREAD:
        coefficient += sums[2].to(tl.float64) * ce_scale
    coefficient = coefficient / sums[1].to(tl.float64)
    coefficient = tl.where(good | (kept == 0), coefficient, float("nan")).to(P.ACC)
    at_label = at_label.to(P.ACC)
    ce_scale = ce_scale.to(P.ACC)
    shift = shift_of(sums[0])
    if WHOLE:
        g = gradient(
            t, exp(unsquash(t, P) - shift) * coefficient, u, columns, index, at_label,
            ce_scale, graded, P,
        )  # fmt: skip
        tl.store(out + columns.to(tl.int64) * out_strides[2], g, mask)
    else:
        for start in range(0, classes, P.BLOCK):
            column = start + columns
            mask = column < classes
            place = column.to(tl.int64)
            value = tl.load(x + place * strides[2], mask, other=0.0).to(P.ACC)
            u = value
            if P.SPREAD:
                u = spread(weight, q, column, mask, classes, probability_strides[2], P)
            t = squash(value, P)
            g = gradient(
                t, exp(unsquash(t, P) - shift) * coefficient, u, column, index, at_label,
                ce_scale, graded, P,
            )  # fmt: skip
            tl.store(out + place * out_strides[2], g, mask)
