"""Arithmetic on a row of logits that the cross-entropy kernels share.

    z = x  or  softcap tanh(x / softcap)              lse = log sum_c exp(z_c)
    t = (1 - e) [c == y] + e / V,  or  (1 - e) q_c + e / V
    loss = sum_c w_c t_c (lse - z_c) + z_loss lse^2
    dloss/dz_c = p_c (sum_k w_k t_k + 2 z_loss lse) - w_c t_c,  p_c = exp(z_c - lse) = dlse/dz_c

u_c = w_c (e / V + (1 - e) q_c) is the part of w_c t_c that is spread over the classes. Six running
values describe a row (or a part of it, if programs share a row): the largest z, sum exp(z - shift),
sum u, sum u (z - shift), argmax, and the position of the first NaN. shift is the largest z, or 0 if
that is -inf. Numbers of which there is one per row are float64.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from ._math import divide, exp, tanh


@dataclass(frozen=True)
class Plan:
    """The constants for which a kernel is compiled."""

    SMOOTHING: float
    SOFTCAP: float
    Z_LOSS: float
    EXACT: bool  # tanh is more accurate, for logits of 32 bits or more
    SPREAD: bool  # u is not zero: label smoothing, or probability targets
    BY_INDEX: bool  # targets are class indices, not probabilities
    STATS: bool  # argmax is wanted
    ACC: Any  # the Triton dtype of the computation
    BLOCK: int  # number of classes that are processed at once


@triton.jit
def row_start(row, strides, inner):
    """Offset of a row whose index counts two token dimensions, the second of size `inner`."""
    return (row // inner) * strides[0] + (row % inner) * strides[1]


@triton.jit
def squash(x, P: tl.constexpr):
    """tanh(x / softcap), x without softcap; the gradient needs all digits of it."""
    if P.SOFTCAP != 0:
        return tanh(divide(x, tl.full([], P.SOFTCAP, x.dtype)), P.EXACT)
    else:
        return x


@triton.jit
def unsquash(t, P: tl.constexpr):
    """Compute z from the result of `squash`."""
    if P.SOFTCAP != 0:
        return P.SOFTCAP * t
    else:
        return t


@triton.jit
def cap(x, P: tl.constexpr):
    """Compute z from raw logits: `squash`, then `unsquash`."""
    return unsquash(squash(x, P), P)


@triton.jit
def shift_of(largest):
    """The number that is subtracted before exp. A row with +inf becomes NaN, as in torch."""
    return tl.where(largest == -float("inf"), 0.0, largest)


@triton.jit
def spread(weight, probabilities, column, mask, classes, class_stride, P: tl.constexpr):
    """u of some classes; `weight` and `probabilities` (of this row) may be None."""
    u = tl.full(column.shape, 1, P.ACC) * P.SMOOTHING / classes
    if probabilities is not None:
        q = tl.load(probabilities + column.to(tl.int64) * class_stride, mask, other=0.0)
        u += (1.0 - P.SMOOTHING) * q.to(P.ACC)
    if weight is not None:
        u *= tl.load(weight + column, mask, other=0.0).to(P.ACC)
    return u


@triton.jit
def empty_sums(classes, P: tl.constexpr):
    """The six sums over no class."""
    zero = tl.full([], 0, P.ACC)
    no_class = tl.full([], 0, tl.int32) + classes
    return zero - float("inf"), zero, zero, zero, tl.full([], 0, tl.int32), no_class


@triton.jit
def add_block(sums, best, x, z, u, column, mask, classes, P: tl.constexpr):
    """Add a block of classes to `sums`, and to `best`, the largest raw logit."""
    largest, exp_sum, u_sum, uz_sum, argmax, nan_at = sums
    z = tl.where(mask, z, -float("inf"))
    new = tl.maximum(largest, tl.max(z, axis=0))
    shift = shift_of(new)
    exp_sum = exp_sum * exp(largest - shift) + tl.sum(exp(z - shift), axis=0)
    if P.SPREAD:
        uz_sum += u_sum * (shift_of(largest) - shift)
        uz_sum += tl.sum(tl.where(mask, u * (z - shift), 0.0), axis=0)
        u_sum += tl.sum(tl.where(mask, u, 0.0), axis=0)
    if P.STATS:
        is_nan = x != x
        nan_at = tl.minimum(nan_at, tl.min(tl.where(mask & is_nan, column, classes), axis=0))
        top = tl.where(mask & (x == x), x, -float("inf"))
        value = tl.max(top, axis=0)
        # The first of equal values; class 0 if all are -inf.
        first = tl.min(tl.where(mask & (top == value), column, classes), axis=0)
        argmax = tl.where(value > best, first, argmax)
        best = tl.maximum(best, value)
    return (new, exp_sum, u_sum, uz_sum, argmax, nan_at), best


@triton.jit
def row_loss(sums, label, label_weight, kept, good, P: tl.constexpr):
    """(cross-entropy, z-loss, lse) of a row; the losses are 0 if ignored, NaN for a bad target."""
    largest, exp_sum, u_sum, uz_sum, _, _ = sums
    shift = shift_of(largest).to(tl.float64)
    log_sum = tl.log(exp_sum.to(tl.float64))
    loss = tl.full([], 0, tl.float64)
    if P.BY_INDEX:
        loss = (1.0 - P.SMOOTHING) * label_weight * ((shift - label.to(tl.float64)) + log_sum)
    if P.SPREAD:
        loss += u_sum.to(tl.float64) * log_sum - uz_sum.to(tl.float64)
    lse = shift + log_sum
    z_term = P.Z_LOSS * lse * lse if P.Z_LOSS != 0 else tl.full([], 0, tl.float64)
    loss = tl.where(good, loss, float("nan"))
    return tl.where(kept, loss, 0.0), tl.where(kept, z_term, 0.0), lse


@triton.jit
def gradient(t, p_scaled, u, column, target, at_label, ce_scale, graded, P: tl.constexpr):
    """The gradient of some classes; `p_scaled` is the term with p, `t` is `squash`ed x."""
    g = p_scaled
    if P.SPREAD:
        g -= u * ce_scale
    if P.BY_INDEX:
        g -= tl.where(column == target, at_label, 0.0)
    if P.SOFTCAP != 0:
        g *= 1.0 - t * t
    return tl.where(graded, g, 0.0)
