"""Softmax cross-entropy in Triton: which kernel is launched, with what.

Forward: a program sweeps a row once. Few long rows are split over programs, whose sums a second
kernel puts together. Backward: one read and one write for each logit. In place, where loss and
gradient are wanted at once, a row that fits stays in registers between its only read and its only
write; a longer one is swept twice by the same program, the second time mostly from the cache.

A target out of range has a NaN loss and gradient: to raise an error the host would have to wait for
the GPU. Nothing is read or written out of place for it.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
from llama_fast.kernels._cross_entropy_kernels import (
    _backward,
    _combine,
    _forward,
    _fused,
    _reduce,
    _totals,
)
from llama_fast.kernels._launch import Options, accumulator, gpu, launch, warps

from llama_fast.reference._dtypes import wide_dtype

NONE, MEAN, SUM = range(3)
# The longest row, in bytes as float32, that stays in registers; what is taken at once of a longer.
LONGEST_ROW, PIECE = 64 << 10, 8192

Strides = tuple[int, int, int]


class Problem(NamedTuple):
    """The arguments of an operator as the kernels take them."""

    logits: torch.Tensor
    strides: Strides
    target: torch.Tensor | None
    probabilities: torch.Tensor | None
    probability_strides: Strides
    weight: torch.Tensor | None
    tokens: int
    classes: int
    inner: int
    ignore_index: int
    options: Options


class Rows(NamedTuple):
    """What is known of each row; empty where not asked for."""

    losses: torch.Tensor
    z_losses: torch.Tensor
    lse: torch.Tensor
    argmax: torch.Tensor


def _class_dim(input: torch.Tensor) -> int:
    return 0 if input.dim() == 1 else 1


def _strided(t: torch.Tensor) -> tuple[torch.Tensor, Strides]:
    """A tensor of logits' shape with the strides of its rows; a copy where they are too irregular.

    The first dimension is the outer one of the tokens, all behind the classes are the inner one.
    """
    if t.dim() == 1:
        return t, (0, 0, t.stride(0))
    sizes, strides = t.shape[2:], t.stride()[2:]
    inner, length = 0, 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if length == 1:
            inner = stride
        elif stride != inner * length:
            return _strided(t.contiguous())
        length *= size
    return t, (t.stride(0), inner, t.stride(1))


def problem(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
) -> Problem:
    """What all launches of an operator share."""
    logits, strides = _strided(input)
    by_index = not target.is_floating_point()
    probabilities, probability_strides = (None, strides) if by_index else _strided(target)
    classes = input.shape[_class_dim(input)]
    if weight is not None:
        weight = weight.to(wide_dtype(input.dtype)).contiguous()
    options = {
        "SMOOTHING": label_smoothing,
        "SOFTCAP": softcap,
        "Z_LOSS": z_loss,
        "EXACT": input.element_size() > 2,
        "SPREAD": label_smoothing > 0 or not by_index,
        "ACC": accumulator(input.dtype),
    }
    return Problem(
        logits, strides, target.contiguous().view(-1) if by_index else None, probabilities,
        probability_strides, weight, input.numel() // max(1, classes), classes,
        max(1, input.shape[2:].numel()), ignore_index, options,
    )  # fmt: skip


def totals(p: Problem, reduction: int) -> torch.Tensor | None:
    """What "mean" divides cross-entropy and z-loss by, (2,) float64, or None."""
    if reduction != MEAN:
        return None
    if p.target is None:
        return p.logits.new_full((2,), p.tokens, dtype=torch.float64)
    made = p.logits.new_empty(2, dtype=torch.float64)
    arguments = (p.target, p.weight, made, p.tokens, p.classes, p.ignore_index)
    launch(_totals, (1,), arguments, {"BLOCK": 1024, "num_warps": 4})
    return made


def _new_rows(p: Problem, stats: bool) -> Rows:
    def new(size: int, dtype: torch.dtype) -> torch.Tensor:
        return p.logits.new_empty(size, dtype=dtype)

    wide = torch.float64
    argmax = new(p.tokens if stats else 0, torch.int64)
    return Rows(new(p.tokens, wide), new(p.tokens, wide), new(p.tokens, wide), argmax)


def _sweep_options(p: Problem) -> Options:
    block = min(PIECE, max(128, triton.next_power_of_2(p.classes)))
    if p.logits.dtype == torch.float64:
        block = min(block, PIECE // 2)
    return {**p.options, "BLOCK": block, "num_warps": warps(block, 8)}


def loss_of_rows(p: Problem, stats: bool) -> Rows:
    """Sweep every row once."""
    rows = _new_rows(p, stats)
    options = _sweep_options(p) | {"BY_INDEX": p.target is not None, "STATS": stats}
    wanted = 4 * gpu(p.logits).processors
    splits = 1
    if p.classes > options["BLOCK"] and 0 < p.tokens < wanted // 2:
        splits = min(triton.cdiv(p.classes, options["BLOCK"]), triton.cdiv(wanted, p.tokens), 64)
    split = triton.cdiv(triton.cdiv(p.classes, splits), options["BLOCK"]) * options["BLOCK"]
    splits = triton.cdiv(p.classes, split) if split else 1
    partial = None
    if splits > 1:
        kind = wide_dtype(p.logits.dtype)
        partial = p.logits.new_empty((7, p.tokens, splits), dtype=kind)
    arguments = (
        p.logits, p.target, p.weight, p.probabilities, *rows, partial, p.classes, split, p.inner,
        p.strides, p.probability_strides, p.ignore_index,
    )  # fmt: skip
    launch(_forward, (p.tokens, splits), arguments, options)
    if splits > 1:
        arguments = (
            p.logits, p.target, p.weight, *rows, partial, p.classes, splits, p.inner, p.strides,
            p.ignore_index,
        )  # fmt: skip
        launch(_combine, (p.tokens,), arguments, options | {"BLOCK": 64, "num_warps": 1})
    return rows


def gradient_of_rows(
    p: Problem,
    out: torch.Tensor,
    out_strides: Strides,
    lse: torch.Tensor,
    grad_loss: torch.Tensor | None,
    divisors: torch.Tensor | None,
    grad_lse: torch.Tensor | None = None,
) -> None:
    """The gradient for class indices, from the lse of each row."""
    weight_sum = None if p.weight is None else p.weight.sum(dtype=torch.float64)
    options = {**_sweep_options(p)}
    options["BLOCK"] = min(options["BLOCK"], 4096 // (1 + (p.logits.element_size() > 4)))
    options["num_warps"] = warps(options["BLOCK"], 8)
    grad_loss, stride = _upstream(p, grad_loss)
    arguments = (
        p.logits, out, lse, p.target, p.weight, weight_sum, grad_loss, grad_lse, divisors,
        p.classes, p.inner, p.strides, out_strides, stride, p.ignore_index,
    )  # fmt: skip
    programs = p.tokens * triton.cdiv(p.classes, options["BLOCK"])
    launch(_backward, (programs,), arguments, options, repeatable=False)


def _upstream(p: Problem, grad_loss: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
    """The upstream gradient of each row, and the step from one to the next."""
    if grad_loss is None:
        return None, 0
    flat = grad_loss.reshape(-1)
    return flat, 0 if flat.numel() == 1 else flat.stride(0)


def _may_keep(p: Problem, stats: bool) -> bool:
    """Whether a row stays in registers, beside what else is computed of it."""
    longest = LONGEST_ROW // 2 if stats or p.options["SPREAD"] else LONGEST_ROW
    return p.classes * wide_dtype(p.logits.dtype).itemsize <= longest


def loss_and_gradient(
    p: Problem,
    out: torch.Tensor,
    out_strides: Strides,
    grad_loss: torch.Tensor | None,
    divisors: torch.Tensor | None,
    stats: bool,
    want_loss: bool = True,
    grad_lse: torch.Tensor | None = None,
) -> Rows | None:
    """Both in one launch; `out` may be the logits themselves."""
    whole, by_index = _may_keep(p, stats), p.target is not None
    if not whole and by_index and p.tokens < 2 * gpu(p.logits).processors and want_loss:
        rows = loss_of_rows(p, stats)  # too few rows for a program each
        gradient_of_rows(p, out, out_strides, rows.lse, grad_loss, divisors, grad_lse)
        return rows
    rows = _new_rows(p, stats) if want_loss else None
    options = _sweep_options(p) | {"BY_INDEX": by_index, "STATS": stats, "WHOLE": whole}
    if whole:
        options["BLOCK"] = max(128, triton.next_power_of_2(p.classes))
        options["num_warps"] = warps(options["BLOCK"])
    grad_loss, stride = _upstream(p, grad_loss)
    arguments = (
        p.logits, out, p.target, p.weight, p.probabilities, grad_loss, grad_lse, divisors,
        *(rows or (None,) * 4), p.classes, p.inner, p.strides, p.probability_strides, out_strides,
        stride, p.ignore_index,
    )  # fmt: skip
    launch(_fused, (p.tokens,), arguments, options, repeatable=False)
    return rows


def reduced(
    p: Problem, found: Rows, divisors: torch.Tensor | None, reduction: int, stats: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, z-loss) of the operator from those of each row; the latter empty without `stats`."""
    dtype, with_z = wide_dtype(p.logits.dtype), p.options["Z_LOSS"] != 0
    if reduction == NONE:
        loss = (found.losses + found.z_losses if with_z else found.losses).to(dtype)
        return loss, found.z_losses.to(dtype) if stats else loss.new_empty(0)
    loss = found.losses.new_empty((), dtype=dtype)
    z_loss = loss.new_empty(() if stats else 0)
    arguments = (found.losses, found.z_losses, divisors, loss, z_loss, p.tokens)
    options = {"Z_LOSS": with_z, "STATS": stats, "BLOCK": 1024, "num_warps": 4}
    launch(_reduce, (1,), arguments, options)
    return loss, z_loss


def _results(
    input: torch.Tensor,
    p: Problem,
    found: Rows,
    divisors: torch.Tensor | None,
    reduction: int,
    stats: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What both forward operators return."""
    tokens = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
    loss, z_loss = reduced(p, found, divisors, reduction, stats)
    if reduction == NONE:
        loss, z_loss = loss.view(tokens), z_loss.view(tokens) if stats else z_loss
    argmax = found.argmax.view(tokens) if stats else found.argmax
    return loss, found.lse.view(tokens), z_loss, argmax


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    stats: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator llama_fast::cross_entropy."""
    p = problem(input, target, weight, ignore_index, label_smoothing, softcap, z_loss)
    divisors = totals(p, reduction)
    return _results(input, p, loss_of_rows(p, stats), divisors, reduction, stats)


def cross_entropy_inplace(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    stats: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator llama_fast::cross_entropy_inplace."""
    p = problem(input, target, weight, ignore_index, label_smoothing, softcap, z_loss)
    divisors = totals(p, reduction)
    rows = loss_and_gradient(p, p.logits, p.strides, None, divisors, stats)
    assert rows is not None
    if p.logits is not input:  # strides that the kernels do not take
        input.copy_(p.logits)
    return _results(input, p, rows, divisors, reduction, stats)


def cross_entropy_backward(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    lse: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: int,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
    grad_lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator llama_fast::cross_entropy_backward."""
    p = problem(input, target, weight, ignore_index, label_smoothing, softcap, z_loss)
    divisors = totals(p, reduction)
    grad = torch.empty_like(input)
    out, out_strides = _strided(grad)
    if grad_lse is not None:
        grad_lse = grad_lse.contiguous()
    if p.target is None or input.dtype == torch.float64:
        # The row is swept again: the sums of its target were not saved; or, in float64, lse has too
        # few digits for p.
        loss_and_gradient(
            p, out, out_strides, grad_loss, divisors, stats=False, want_loss=False,
            grad_lse=grad_lse,
        )  # fmt: skip
    else:
        lse = lse.contiguous()
        gradient_of_rows(p, out, out_strides, lse, grad_loss, divisors, grad_lse)
    return grad if out is grad else grad.copy_(out)


def examples() -> Iterator[Callable[[], object]]:
    """Calls that reach every configuration."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for classes in (1024, 8192, 128256) if dtype == torch.bfloat16 else (8192, 128256):
            yield from _examples_of(dtype, classes, 4096)
    yield from _examples_of(torch.bfloat16, 16384, 4096)
    yield from _examples_of(torch.bfloat16, 100, 4096)
    yield from _examples_of(torch.bfloat16, 128256, 8)


def _examples_of(dtype: torch.dtype, classes: int, tokens: int) -> Iterator[Callable[[], object]]:
    x = torch.empty(tokens, classes, dtype=dtype, device="meta")
    y = torch.empty(tokens, dtype=torch.int64, device="meta")
    one, lse = (
        torch.empty((), device="meta"),
        torch.empty(tokens, dtype=torch.float64, device="meta"),
    )
    weight = torch.empty(classes, device="meta")
    every = [(None, 0.0, 0.0, 0.0, False), (None, 0.1, 30.0, 1e-4, True)]
    if classes > 100000 and dtype == torch.bfloat16:
        every += [(weight, 0.0, 0.0, 0.0, False), (weight, 0.1, 0.0, 0.0, False)]
        every += [(None, 0.0, 30.0, 0.0, False), (None, 0.0, 0.0, 1e-4, True)]
    for w, smoothing, softcap, z_loss, stats in every:
        options = (w, -100, MEAN, smoothing, softcap, z_loss)
        for target in (y, x) if w is None else (y,):
            yield lambda t=target, o=options, s=stats: cross_entropy(x, t, *o, s)
            yield lambda t=target, o=options, s=stats: cross_entropy_inplace(x, t, *o, s)
            for grad_lse in (None, lse) if stats else (None,):
                yield lambda t=target, o=options, g=grad_lse: cross_entropy_backward(
                    one, x, lse, t, *o, g
                )
