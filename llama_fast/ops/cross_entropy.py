"""Softmax cross-entropy: arguments, backends, results. The derivatives are in _cross_entropy.py."""

from __future__ import annotations

import math

import torch

from llama_fast import reference
from llama_fast._torch_internals import has_dispatch_mode, in_transform, view_base
from llama_fast.ops import _checks, stock
from llama_fast.ops._autograd import needs_plain_torch
from llama_fast.ops._cross_entropy import (
    REDUCTIONS,
    InplaceLoss,
    class_dim,
    eager_loss,
    general_loss,
    loss_dtype,
)
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.reference.cross_entropy import Stats

_INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@overridable
def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace: bool = False,
    return_stats: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, Stats]:
    """Cross-entropy between logits and targets: `torch.nn.functional.cross_entropy` and more.

    For one token with logits x, class weights w and label smoothing e,

        z = x  or  softcap * tanh(x / softcap)        lse = log(sum_c exp(z_c))
        loss = sum_c w_c t_c (lse - z_c) + z_loss * lse^2

    where t is (1 - e) [c == target] + e / V, or (1 - e) target_c + e / V.

    Args:
        input: logits (V,), (N,V) or (N,V,d1,...), any strides; float64, float32, bfloat16, float16.
        target: class indices of input's shape without V (any integer type), or class probabilities
            of input's shape (floating point; differentiable).
        weight: a factor for each class, (V,), floating point, not differentiable.
        ignore_index: tokens with this target add nothing: their loss and gradient are zero, even
            where their logits are NaN. Class indices only.
        reduction: "none", "sum", or "mean": divided by the summed weights of the targets that are
            not ignored (NaN if there are none); by the number of tokens for probabilities.
        label_smoothing: e, in [0, 1].
        softcap: bound of the logits (Gemma 2, arXiv:2408.00118), or None.
        z_loss: factor of lse^2 (PaLM, arXiv:2204.02311). It is not weighted by class; "mean"
            divides it by the number of tokens that are not ignored.
        inplace: permission to overwrite `input` with its gradient, which saves the memory and the
            time of a second tensor of that size. Used when a gradient is wanted, in eager mode.
            `input` holds no logits afterwards; where another operation's backward needs them,
            autograd raises its usual error.
        return_stats: also return `Stats` (lse, argmax, correct, z_loss). lse is differentiable (not
            with `inplace`), for ignored tokens too; the rest is not.

    Returns:
        The loss, float32 (float64 for float64 input): a scalar, or of the index target's shape
        for "none". With return_stats the tuple (loss, Stats).

    Raises:
        TypeError: a dtype that does not fit.
        ValueError: a shape, device, number or reduction that does not fit; `inplace` on a leaf
            that requires grad.
        IndexError: a target that is neither a class nor ignore_index (position and value named);
            on a GPU, where finding out would hold up the host, its loss is NaN instead.

    Example:
        >>> loss = llama_fast.cross_entropy(logits.view(-1, V), tokens.view(-1), inplace=True)
    """
    ignore_index = _checks.integer("ignore_index", ignore_index)
    label_smoothing = _checks.number("label_smoothing", label_smoothing)
    softcap = None if softcap is None else _checks.number("softcap", softcap)
    z_loss = _checks.number("z_loss", z_loss)
    _check(input, target, weight, ignore_index, reduction, label_smoothing, softcap, z_loss)
    if inplace and not torch.compiler.is_compiling():
        _check_no_leaf(input)
    backend = choose("cross_entropy", input)
    if backend in ("reference", "torch") or needs_plain_torch():
        module = stock if backend == "torch" else reference
        if not target.is_floating_point():
            _checks.check_targets(target, input.shape[class_dim(input)], ignore_index)
        return module.cross_entropy(
            input,
            target,
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            softcap=softcap,
            z_loss=z_loss,
            return_stats=return_stats,
        )

    if backend in ("triton", "cuda") and not (input.is_cuda or target.is_floating_point()):
        # On the CPU; on a GPU the host would have to wait, and the loss is NaN instead.
        _checks.check_targets(target, input.shape[class_dim(input)], ignore_index)
    if target.dtype is not torch.int64 and not target.is_floating_point():
        target = target.long()
    if weight is not None:
        weight = weight.to(loss_dtype(input))
    if not _is_eager(input):
        run = general_loss
    elif inplace and _may_overwrite(input, target):
        run = InplaceLoss.apply
    else:
        run = eager_loss
    try:
        loss, lse, z_part, argmax = run(
            input,
            target,
            weight,
            ignore_index,
            REDUCTIONS.index(reduction),
            label_smoothing,
            softcap or 0.0,
            z_loss,
            return_stats,
        )
    except RuntimeError as error:
        raise _checks.meant(error) from None
    if not return_stats:
        return loss
    if target.is_floating_point():
        correct = argmax == target.argmax(dim=class_dim(input))
    else:
        correct = (argmax == target) & (target != ignore_index)
    return loss, Stats(lse.to(loss.dtype), argmax, correct, z_part)


# --- what is asked of the arguments ----------------------------------------------------------


def _check(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    softcap: float | None,
    z_loss: float,
) -> None:
    _checks.check_float("input", input)
    if input.dim() < 1:
        raise ValueError("input: expected shape (V,), (N,V) or (N,V,d1,...), got ()")
    if not _checks.is_tensor(target):
        raise TypeError(f"target: expected a tensor, got {type(target).__name__}")
    if target.is_floating_point():
        _checks.check_float("target", target)
        if target.shape != input.shape:
            _checks.check_shape("target", target, tuple(input.shape), "of class probabilities")
        if ignore_index >= 0:
            raise ValueError(
                "ignore_index: expected it unset with class probabilities as target, "
                f"got {ignore_index}"
            )
    else:
        if target.dtype not in _INDEX_DTYPES:
            raise TypeError(
                "target: expected int64 class indices or floating-point class probabilities, "
                f"got {target.dtype}"
            )
        expected = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
        if target.shape != expected:
            _checks.check_shape("target", target, tuple(expected), "of input without its classes")
    if target.device != input.device:
        _checks.check_device("target", target, "input", input)
    if weight is not None:
        _checks.check_float("weight", weight)
        _checks.check_shape("weight", weight, (input.shape[class_dim(input)],), "(V,)")
        _checks.check_device("weight", weight, "input", input)
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError("weight: expected a tensor that does not require grad")
    if reduction not in REDUCTIONS:
        _checks.check_choice("reduction", reduction, REDUCTIONS)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing!r}")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"softcap: expected None or a positive number, got {softcap!r}")
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss: expected a number that is not negative, got {z_loss!r}")


def _check_no_leaf(input: torch.Tensor) -> None:
    """`inplace` refuses what torch's in-place operations refuse."""
    base = view_base(input)
    if base.is_leaf and base.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "inplace: expected logits that were computed, got a leaf tensor that requires grad "
            "(or a view of one), whose values would be lost"
        )


def _may_overwrite(input: torch.Tensor, target: torch.Tensor) -> bool:
    """Whether `inplace` is of use and possible."""
    if not (torch.is_grad_enabled() and input.requires_grad) or target.requires_grad:
        return False  # nothing to write; or the target's gradient needs the logits
    # An expanded tensor has less memory than gradient.
    return all(
        stride != 0 or size <= 1 for size, stride in zip(input.shape, input.stride(), strict=True)
    )


def _is_eager(input: torch.Tensor) -> bool:
    """Whether nothing but autograd watches: no tracing, mode, transform or tensor subclass."""
    return (
        type(input) in (torch.Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not has_dispatch_mode()
        and not in_transform()
    )
