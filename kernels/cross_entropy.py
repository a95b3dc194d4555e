"""Softmax cross-entropy in Triton: the launchers.

Forward: a program reads a row once. If there are few long rows, several programs share a row, and a
second kernel combines their sums. Backward: one read and one write per logit. In place, loss and
gradient are computed together: a row that fits stays in registers between its only read and its
    only
write; a longer one is read twice by the same program, the second time mostly from cache.

For a target out of range, loss and gradient are NaN, because to raise an error the host would have
to wait for the GPU. No memory outside the tensors is accessed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import triton

from llama_fast.reference import CrossEntropyOptions
from llama_fast.reference._dtypes import wide_dtype
from llama_fast.reference.cross_entropy import MEAN, NONE, class_dim, token_shape

from ._cross_entropy_gradient import _backward, _fused
from ._cross_entropy_loss import _combine, _forward, _reduce, _totals
from ._cross_entropy_row import Plan
from ._launch import Options, accumulator, gpu, launch, warps

MAX_ROW_BYTES = 64 << 10  # longest row kept in registers, in the computation's dtype
MAX_BLOCK = 8192  # number of classes of a longer row that are processed at once

Strides = tuple[int, int, int]
# loss, lse, z_loss and argmax
LossResults = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Inputs(NamedTuple):
    """The arguments of an operator in the form that the kernels take.

    One of `target` and `probabilities` is None. `inner` is the size of the inner token dimension.
    """

    logits: torch.Tensor
    strides: Strides
    target: torch.Tensor | None
    probabilities: torch.Tensor | None
    probability_strides: Strides
    tokens: int
    classes: int
    inner: int
    options: CrossEntropyOptions


class RowResults(NamedTuple):
    """The results of all rows; argmax is empty if it is not requested."""

    losses: torch.Tensor
    z_losses: torch.Tensor
    lse: torch.Tensor
    argmax: torch.Tensor


def _strided(t: torch.Tensor) -> tuple[torch.Tensor, Strides]:
    """Return a tensor like logits, with its strides (outer tokens, inner tokens, classes).

    The first dimension is the outer token dimension; those after the classes are merged into the
    inner one. If strides do not allow that, the returned tensor is a contiguous copy.
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


def inputs(input: torch.Tensor, target: torch.Tensor, options: CrossEntropyOptions) -> Inputs:
    """The arguments that all launches of an operator share."""
    logits, strides = _strided(input)
    by_index = not target.is_floating_point()
    probabilities, probability_strides = (None, strides) if by_index else _strided(target)
    classes = input.shape[class_dim(input)]
    if options.weight is not None:
        weight = options.weight.to(wide_dtype(input.dtype)).contiguous()
        options = options._replace(weight=weight)
    return Inputs(
        logits, strides, target.contiguous().view(-1) if by_index else None, probabilities,
        probability_strides, input.numel() // max(1, classes), classes,
        max(1, input.shape[2:].numel()), options,
    )  # fmt: skip


def totals(p: Inputs) -> torch.Tensor | None:
    """The divisors of cross-entropy and z-loss for "mean", (2,) float64; None if not "mean"."""
    if p.options.reduction != MEAN:
        return None
    if p.target is None:
        return p.logits.new_full((2,), p.tokens, dtype=torch.float64)
    divisors = p.logits.new_empty(2, dtype=torch.float64)
    arguments = (
        p.target, p.options.weight, divisors, p.tokens, p.classes, p.options.ignore_index,
    )  # fmt: skip
    launch(_totals, (1,), arguments, {"BLOCK": 1024, "num_warps": 4})
    return divisors


def _new_rows(p: Inputs, stats: bool) -> RowResults:
    def new(size: int, dtype: torch.dtype) -> torch.Tensor:
        return p.logits.new_empty(size, dtype=dtype)

    wide = torch.float64
    argmax = new(p.tokens if stats else 0, torch.int64)
    return RowResults(new(p.tokens, wide), new(p.tokens, wide), new(p.tokens, wide), argmax)


def _plan(p: Inputs, stats: bool) -> Plan:
    """The plan of a kernel that processes a row in blocks."""
    dtype, by_index, options = p.logits.dtype, p.target is not None, p.options
    max_block = MAX_BLOCK if dtype != torch.float64 else MAX_BLOCK // 2
    return Plan(
        SMOOTHING=options.label_smoothing,
        SOFTCAP=options.softcap,
        Z_LOSS=options.z_loss,
        EXACT=dtype.itemsize > 2,
        SPREAD=options.label_smoothing > 0 or not by_index,
        BY_INDEX=by_index,
        STATS=stats,
        ACC=accumulator(dtype),
        BLOCK=min(max_block, max(128, triton.next_power_of_2(p.classes))),
    )


def _options(plan: Plan, max_warps: int) -> Options:
    """The constexpr arguments and the number of warps of a launch."""
    return {"P": plan, "num_warps": warps(plan.BLOCK, max_warps)}


def loss_of_rows(p: Inputs, stats: bool) -> RowResults:
    """Compute losses and statistics of all rows in one read."""
    rows = _new_rows(p, stats)
    plan = _plan(p, stats)
    wanted = 4 * gpu(p.logits).processors
    splits = 1
    if p.classes > plan.BLOCK and 0 < p.tokens < wanted // 2:
        splits = min(triton.cdiv(p.classes, plan.BLOCK), triton.cdiv(wanted, p.tokens), 64)
    split = triton.cdiv(triton.cdiv(p.classes, splits), plan.BLOCK) * plan.BLOCK
    splits = triton.cdiv(p.classes, split) if split else 1
    parts = None
    if splits > 1:
        parts = p.logits.new_empty((7, p.tokens, splits), dtype=wide_dtype(p.logits.dtype))
    arguments: tuple[Any, ...] = (
        p.logits, p.target, p.options.weight, p.probabilities, *rows, parts, p.classes, split,
        p.inner, p.strides, p.probability_strides, p.options.ignore_index,
    )  # fmt: skip
    launch(_forward, (p.tokens, splits), arguments, _options(plan, 8))
    if splits > 1:
        arguments = (
            p.logits, p.target, p.options.weight, *rows, parts, p.classes, splits, p.inner,
            p.strides, p.options.ignore_index,
        )  # fmt: skip
        launch(_combine, (p.tokens,), arguments, _options(replace(plan, BLOCK=64), 1))
    return rows


def gradient_of_rows(
    p: Inputs,
    out: torch.Tensor,
    out_strides: Strides,
    lse: torch.Tensor,
    grad_loss: torch.Tensor | None,
    divisors: torch.Tensor | None,
    grad_lse: torch.Tensor | None = None,
) -> None:
    """Compute the gradient for class indices from the lse of each row."""
    weight_sum = None if p.options.weight is None else p.options.weight.sum(dtype=torch.float64)
    plan = _plan(p, stats=False)
    plan = replace(plan, BLOCK=min(plan.BLOCK, 4096 // (1 + (p.logits.element_size() > 4))))
    grad_loss, stride = _upstream(p, grad_loss)
    arguments = (
        p.logits, out, lse, p.target, p.options.weight, weight_sum, grad_loss, grad_lse, divisors,
        p.classes, p.inner, p.strides, out_strides, stride, p.options.ignore_index,
    )  # fmt: skip
    programs = p.tokens * triton.cdiv(p.classes, plan.BLOCK)
    launch(_backward, (programs,), arguments, _options(plan, 8), repeatable=False)


def _upstream(p: Inputs, grad_loss: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
    """The upstream gradients of the rows, and their stride."""
    if grad_loss is None:
        return None, 0
    flat = grad_loss.reshape(-1)
    return flat, 0 if flat.numel() == 1 else flat.stride(0)


def _may_keep(p: Inputs, plan: Plan) -> bool:
    """Whether a row fits in registers, besides the other values of its program."""
    max_bytes = MAX_ROW_BYTES // 2 if plan.STATS or plan.SPREAD else MAX_ROW_BYTES
    return p.classes * wide_dtype(p.logits.dtype).itemsize <= max_bytes


def loss_and_gradient(
    p: Inputs,
    out: torch.Tensor,
    out_strides: Strides,
    grad_loss: torch.Tensor | None,
    divisors: torch.Tensor | None,
    stats: bool,
    want_loss: bool = True,
    grad_lse: torch.Tensor | None = None,
) -> RowResults | None:
    """Compute both in one launch; `out` may be the logits. Return None without `want_loss`."""
    plan = _plan(p, stats)
    whole = _may_keep(p, plan)
    if not whole and plan.BY_INDEX and p.tokens < 2 * gpu(p.logits).processors and want_loss:
        results = loss_of_rows(p, stats)  # too few rows for one program each
        gradient_of_rows(p, out, out_strides, results.lse, grad_loss, divisors, grad_lse)
        return results
    rows = _new_rows(p, stats) if want_loss else None
    if whole:
        plan = replace(plan, BLOCK=max(128, triton.next_power_of_2(p.classes)))
    config = _options(plan, 32 if whole else 8) | {"WHOLE": whole}
    grad_loss, stride = _upstream(p, grad_loss)
    arguments = (
        p.logits, out, p.target, p.options.weight, p.probabilities, grad_loss, grad_lse, divisors,
        *(rows or (None,) * 4), p.classes, p.inner, p.strides, p.probability_strides, out_strides,
        stride, p.options.ignore_index,
    )  # fmt: skip
    launch(_fused, (p.tokens,), arguments, config, repeatable=False)
    return rows


def reduced(
    p: Inputs, rows: RowResults, divisors: torch.Tensor | None, stats: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, z-loss) of the operator from those of the rows; z-loss is empty without `stats`."""
    dtype, with_z = wide_dtype(p.logits.dtype), p.options.z_loss != 0
    if p.options.reduction == NONE:
        loss = (rows.losses + rows.z_losses if with_z else rows.losses).to(dtype)
        return loss, rows.z_losses.to(dtype) if stats else loss.new_empty(0)
    loss = rows.losses.new_empty((), dtype=dtype)
    z_loss = loss.new_empty(() if stats else 0)
    arguments = (rows.losses, rows.z_losses, divisors, loss, z_loss, p.tokens)
    constants = {"Z_LOSS": with_z, "STATS": stats, "BLOCK": 1024, "num_warps": 4}
    launch(_reduce, (1,), arguments, constants)
    return loss, z_loss


def _results(
    input: torch.Tensor,
    p: Inputs,
    rows: RowResults,
    divisors: torch.Tensor | None,
    stats: bool,
) -> LossResults:
    """The results of both forward operators."""
    tokens = token_shape(input)
    loss, z_loss = reduced(p, rows, divisors, stats)
    if p.options.reduction == NONE:
        loss, z_loss = loss.view(tokens), z_loss.view(tokens) if stats else z_loss
    argmax = rows.argmax.view(tokens) if stats else rows.argmax
    return loss, rows.lse.view(tokens), z_loss, argmax


# The operators have the fields of CrossEntropyOptions as separate arguments.


def cross_entropy(input: torch.Tensor, target: torch.Tensor, *arguments: Any) -> LossResults:
    """The operator llama_fast::cross_entropy."""
    options, (stats,) = CrossEntropyOptions.split(arguments)
    p = inputs(input, target, options)
    divisors = totals(p)
    return _results(input, p, loss_of_rows(p, stats), divisors, stats)


def cross_entropy_inplace(
    input: torch.Tensor, target: torch.Tensor, *arguments: Any
) -> LossResults:
    """The operator llama_fast::cross_entropy_inplace."""
    options, (stats,) = CrossEntropyOptions.split(arguments)
    p = inputs(input, target, options)
    divisors = totals(p)
    rows = loss_and_gradient(p, p.logits, p.strides, None, divisors, stats)
    assert rows is not None
    if p.logits is not input:  # the kernels do not support its strides
        input.copy_(p.logits)
    return _results(input, p, rows, divisors, stats)


def cross_entropy_backward(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    lse: torch.Tensor,
    target: torch.Tensor,
    *arguments: Any,
) -> torch.Tensor:
    """The operator llama_fast::cross_entropy_backward."""
    options, others = CrossEntropyOptions.split(arguments)
    grad_lse = others[0].contiguous() if others and others[0] is not None else None
    p = inputs(input, target, options)
    divisors = totals(p)
    grad = torch.empty_like(input)
    out, out_strides = _strided(grad)
    if p.target is None or input.dtype == torch.float64:
        # The row is summed again: the forward did not save the sums over probability targets, and
        # in float64 its lse has too few digits for p.
        loss_and_gradient(
            p, out, out_strides, grad_loss, divisors, stats=False, want_loss=False,
            grad_lse=grad_lse,
        )  # fmt: skip
    else:
        lse = lse.contiguous()
        gradient_of_rows(p, out, out_strides, lse, grad_loss, divisors, grad_lse)
    return grad if out is grad else grad.copy_(out)


def examples() -> Iterator[Callable[[], object]]:
    """Yield calls that together use every configuration."""
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
        options = CrossEntropyOptions(w, -100, MEAN, smoothing, softcap, z_loss)
        for target in (y, x) if w is None else (y,):
            yield partial(cross_entropy, x, target, *options, stats)
            yield partial(cross_entropy_inplace, x, target, *options, stats)
            for grad_lse in (None, lse) if stats else (None,):
                yield partial(cross_entropy_backward, one, x, lse, target, *options, grad_lse)
