"""Softmax cross-entropy: argument checks and choice of backend; derivatives: _cross_entropy.py."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from llama_fast import reference
from llama_fast._torch_internals import has_dispatch_mode, in_transform, view_base
from llama_fast.ops import _checks, stock
from llama_fast.ops._autograd import needs_plain_torch
from llama_fast.ops._cross_entropy import InplaceLoss, eager_loss, general_loss
from llama_fast.ops._cross_entropy_options import (
    INDEX_DTYPES,
    check_class_weight,
    checked_options,
)
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.reference._dtypes import compute_dtype
from llama_fast.reference.cross_entropy import (
    CrossEntropyOptions,
    Stats,
    class_dim,
    token_shape,
)


@overload
def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, *, softcap: float | None = None,
    z_loss: float = 0.0, inplace: bool = False, return_stats: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, *, softcap: float | None = None,
    z_loss: float = 0.0, inplace: bool = False, return_stats: Literal[True],
) -> tuple[Tensor, Stats]: ...  # fmt: skip
@overload
def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100,
    reduction: str = "mean", label_smoothing: float = 0.0, *, softcap: float | None = None,
    z_loss: float = 0.0, inplace: bool = False, return_stats: bool,
) -> Tensor | tuple[Tensor, Stats]: ...  # fmt: skip
@overridable
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace: bool = False,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """Cross-entropy between logits and targets: `torch.nn.functional.cross_entropy` and more.

    For one token with logits x, class weights w and label smoothing e,

        z = x  or  softcap * tanh(x / softcap)        lse = log(sum_c exp(z_c))
        loss = sum_c w_c t_c (lse - z_c) + z_loss * lse^2

    where t_c = (1 - e) [c == target] + e / V for class indices, and (1 - e) target_c + e / V for
    class probabilities.

    Args:
        input: logits (V,), (N,V) or (N,V,d1,...), any strides; float64, float32, bfloat16, float16.
        target: class indices (any integer dtype) in the shape of `input` without V, or class
            probabilities (floating point; differentiable) in the shape of `input`.
        weight: (V,), a factor for each class, floating point; not differentiable.
        ignore_index: tokens with this target are left out: their loss and gradient are zero, even
            if their logits are NaN. For class indices only.
        reduction: "none", "sum" or "mean". The mean divides the sum by the summed weights of the
            targets that are not ignored (NaN if all are ignored); for class probabilities, by
            the number of tokens.
        label_smoothing: e, in [0, 1].
        softcap: bound of the logits (Gemma 2, arXiv:2408.00118), or None.
        z_loss: factor of lse^2 (PaLM, arXiv:2204.02311). It is not weighted by class; "mean"
            divides it by the number of tokens that are not ignored.
        inplace: allow `input` to be overwritten with its gradient, which saves the memory and the
            time of a second tensor of that size. This happens in eager mode if a gradient is
            needed. `input` then no longer holds logits; if the backward pass of another operation
            needs them, autograd raises its usual error.
        return_stats: also return `Stats` (lse, argmax, correct, z_loss). Only lse is
            differentiable, also for ignored tokens, but not with `inplace`.

    Returns:
        The loss in float32 (float64 for float64 input): a scalar or, with reduction "none", a
        tensor of one loss per token. With `return_stats` the pair (loss, Stats).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device, number or reduction does not fit, or `inplace` is set and
            `input` is a leaf that requires grad.
        IndexError: a target is neither a class nor `ignore_index`; the message names its position
            and value. On a GPU, where the check would block the host, its loss is NaN instead.

    Example:
        >>> loss = llama_fast.cross_entropy(logits.view(-1, V), tokens.view(-1), inplace=True)
    """
    by_index = _check_tensors(input, target)
    if weight is not None:
        check_class_weight(weight, input, input.shape[class_dim(input)])
    options = checked_options(weight, ignore_index, reduction, label_smoothing, softcap, z_loss)
    if not by_index and options.ignore_index >= 0:
        raise ValueError(
            "ignore_index: expected it unset with class probabilities as target, "
            f"got {options.ignore_index}"
        )
    if inplace and not torch.compiler.is_compiling():
        _check_no_leaf(input)
    backend = choose("cross_entropy", input)
    if backend in ("reference", "torch") or needs_plain_torch():
        if by_index:
            _checks.check_targets(target, input.shape[class_dim(input)], options.ignore_index)
        module = stock if backend == "torch" else reference
        return module.cross_entropy(input, target, options, return_stats=return_stats)

    if backend in ("triton", "cuda") and by_index and not input.is_cuda:
        # On a GPU the host would have to wait for the check: there the loss is NaN instead.
        _checks.check_targets(target, input.shape[class_dim(input)], options.ignore_index)
    if by_index and target.dtype is not torch.int64:
        target = target.long()
    if options.weight is not None:
        options = CrossEntropyOptions(options.weight.to(compute_dtype(input)), *options[1:])
    if not _is_eager(input):
        run = general_loss
    elif inplace and _may_overwrite(input, target):
        run = InplaceLoss.apply
    else:
        run = eager_loss
    loss, lse, z_part, argmax = run(input, target, *options, return_stats)
    if not return_stats:
        return loss
    if by_index:
        correct = (argmax == target) & (target != options.ignore_index)
    else:
        correct = argmax == target.argmax(dim=class_dim(input))
    return loss, Stats(lse.to(loss.dtype), argmax, correct, z_part)


def _check_tensors(input: Tensor, target: Tensor) -> bool:
    """Check both; return whether the targets are class indices rather than probabilities."""
    _checks.check_float("input", input)
    if input.dim() < 1:
        raise ValueError("input: expected shape (V,), (N,V) or (N,V,d1,...), got ()")
    if not _checks.is_tensor(target):
        raise TypeError(f"target: expected a tensor, got {type(target).__name__}")
    by_index = not target.is_floating_point()
    if not by_index:
        _checks.check_float("target", target)
        if target.shape != input.shape:
            _checks.check_shape("target", target, tuple(input.shape), "of class probabilities")
    else:
        if target.dtype not in INDEX_DTYPES:
            raise TypeError(
                "target: expected int64 class indices or floating-point class probabilities, "
                f"got {target.dtype}"
            )
        expected = token_shape(input)
        if target.shape != expected:
            _checks.check_shape("target", target, tuple(expected), "of input without its classes")
    if target.device != input.device:
        _checks.check_device("target", target, "input", input)
    return by_index


def _check_no_leaf(input: Tensor) -> None:
    """Raise if `input` is a leaf that requires grad, as torch's in-place operations do."""
    base = view_base(input)
    if base.is_leaf and base.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "inplace: expected logits that were computed, got a leaf tensor that requires grad "
            "(or a view of one), whose values would be lost"
        )


def _may_overwrite(input: Tensor, target: Tensor) -> bool:
    """Whether `input` needs a gradient and may be overwritten with it."""
    if not (torch.is_grad_enabled() and input.requires_grad) or target.requires_grad:
        return False  # the gradient of the target is computed from the logits
    # The elements of an expanded tensor share memory; those of its gradient cannot.
    return all(
        stride != 0 or size <= 1 for size, stride in zip(input.shape, input.stride(), strict=True)
    )


def _is_eager(input: Tensor) -> bool:
    """Whether this is a plain eager call: no tracing, mode, transform or tensor subclass."""
    return (
        type(input) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not has_dispatch_mode()
        and not in_transform()
    )
