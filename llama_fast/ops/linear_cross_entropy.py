"""Projection onto the vocabulary and softmax cross-entropy in one op, without the (N,V) logits."""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from llama_fast import reference
from llama_fast.ops import stock
from llama_fast.ops._autocast import autocast_dtype, without_autocast
from llama_fast.ops._autograd import needs_plain_torch, nested_transforms
from llama_fast.ops._checks import (
    check_device,
    check_float,
    check_same,
    check_shape,
    check_targets,
    check_tensor,
    shape,
)
from llama_fast.ops._cross_entropy_options import (
    INDEX_DTYPES,
    check_class_weight,
    checked_options,
)
from llama_fast.ops._linear_cross_entropy import LinearCrossEntropy, LogSumExp
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.reference.cross_entropy import NONE, Stats


@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    weight: Tensor | None = None, reduction: str = "mean", ignore_index: int = -100,
    label_smoothing: float = 0.0, softcap: float | None = None, z_loss: float = 0.0,
    shift: bool = False, process_group: dist.ProcessGroup | None = None,
    return_stats: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    weight: Tensor | None = None, reduction: str = "mean", ignore_index: int = -100,
    label_smoothing: float = 0.0, softcap: float | None = None, z_loss: float = 0.0,
    shift: bool = False, process_group: dist.ProcessGroup | None = None, return_stats: Literal[True]
) -> tuple[Tensor, Stats]: ...  # fmt: skip
@overload
def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    weight: Tensor | None = None, reduction: str = "mean", ignore_index: int = -100,
    label_smoothing: float = 0.0, softcap: float | None = None, z_loss: float = 0.0,
    shift: bool = False, process_group: dist.ProcessGroup | None = None, return_stats: bool
) -> Tensor | tuple[Tensor, Stats]: ...  # fmt: skip
@overridable
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    shift: bool = False,
    process_group: dist.ProcessGroup | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, Stats]:
    """cross_entropy(input @ linear_weight.T + linear_bias, target), without the (N,V) logits.

    The loss is computed and accumulated in float32 (float64 for float64 input). Ignored tokens are
    left out of the matrix products. With reduction "mean" or "sum" the forward pass also computes
    the gradients, and the backward pass only scales them; no gradient is computed for an argument
    that does not require one.

    Args:
        input: (..., E), usually hidden states (N,E) or (B,S,E); float64, float32, bfloat16 or
            float16.
        linear_weight: (V,E), the dtype of `input`.
        target: (...), class indices in [0, V) of any integer type, or `ignore_index`.
        linear_bias: (V,), the dtype of `input`.
        weight: (V,), a factor for each class, any float dtype; not differentiable.
        reduction: "none", "sum" or "mean". The mean divides the sum by the summed class weights of
            the targets that are not ignored (NaN if all are ignored).
        ignore_index: tokens with this target are left out: their loss and gradient are zero.
        label_smoothing: in [0, 1], the share of the target spread evenly over all classes.
        softcap: logits become softcap * tanh(logits / softcap).
        z_loss: adds z_loss * lse^2 to the loss of each token.
        shift: let position t of the last token dimension predict the target at t + 1. The last
            position and the first target are dropped, so that dimension of the results is one
            shorter.
        process_group: a group whose W ranks share the vocabulary: each passes its V/W rows of
            `linear_weight` and `linear_bias`, in rank order, and all other arguments in full.
            Every rank gets the same loss, the full gradient of `input`, and the gradient of its
            own rows.
        return_stats: also return `Stats` (lse, argmax, correct, z_loss). Only lse is
            differentiable; its gradient takes a second pass over the logits.

    Returns:
        The loss in float32 (float64 for float64 input): a scalar or, with reduction "none", a
        tensor in the shape of `target`. With `return_stats` the pair (loss, Stats); for an ignored
        token lse is 0 and argmax is -1.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not match, or an option is out of range.
        IndexError: a target is neither a class index nor `ignore_index`. On a GPU, where the check
            would block the host, its loss is NaN instead.
    """
    check_float("input", input)
    check_float("linear_weight", linear_weight)
    device_type = input.device.type
    narrow = autocast_dtype(device_type)
    if narrow is not None:  # as F.linear does
        input, linear_weight, linear_bias = (
            x.to(narrow) if x is not None and x.dtype != torch.float64 else x
            for x in (input, linear_weight, linear_bias)
        )
    _check_tensors(input, linear_weight, target, linear_bias, shift)
    world = 1 if process_group is None else process_group.size()
    classes = linear_weight.shape[0] * world
    if weight is not None:
        check_class_weight(weight, input, classes)
    options = checked_options(weight, ignore_index, reduction, label_smoothing, softcap, z_loss)

    backend = choose("linear_cross_entropy", input)
    if needs_plain_torch() or nested_transforms():
        if process_group is not None:
            raise ValueError(
                "process_group: expected None under forward-mode derivatives and under torch.func "
                "(but for one torch.func.grad or vjp), got a group"
            )
        backend = "torch" if backend == "torch" else "reference"
    if shift:  # position t predicts the token at t + 1
        input, target = input[..., :-1, :], target[..., 1:]
    # On a GPU the host would have to wait for the check: there the loss is NaN instead.
    if backend != "triton" or not input.is_cuda:
        check_targets(target, classes, options.ignore_index)
    if backend in ("torch", "reference"):
        module = stock if backend == "torch" else reference
        with without_autocast(device_type):
            return module.linear_cross_entropy(
                input, linear_weight, target, linear_bias, options,
                process_group=process_group, return_stats=return_stats,
            )  # fmt: skip

    rows, flat = input.reshape(target.numel(), input.shape[-1]), target.reshape(-1).long()
    # Neither the compiled kernel nor Triton's supports process groups.
    compiled = backend in ("cpu", "triton") and process_group is None
    group_name = None if compiled else _name(process_group)
    wanted = [_needs_gradient(x) for x in (input, linear_weight, linear_bias)]
    loss, lse, z_part, argmax = LinearCrossEntropy.apply(
        rows, linear_weight, linear_bias, flat, *options, group_name, return_stats, wanted
    )[:4]
    if options.reduction == NONE:
        loss, z_part = loss.view(target.shape), z_part.view(target.shape)
    if not return_stats:
        return loss
    if any(wanted):
        lse = LogSumExp.apply(
            rows, linear_weight, linear_bias, flat, lse, options.ignore_index, options.softcap,
            group_name, wanted,
        )  # fmt: skip
    lse, argmax = lse.view(target.shape), argmax.view(target.shape)
    correct = (argmax == target) & (target != options.ignore_index)
    return loss, Stats(lse, argmax, correct, z_part)


def _check_tensors(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    shift: bool,
) -> None:
    if shift:
        if input.dim() < 2 or input.shape[-2] < 1:
            raise ValueError(
                f"input: expected shape (...,S,E) with S >= 1 for shift=True, got {shape(input)}"
            )
    elif input.dim() < 1:
        raise ValueError(f"input: expected shape (...,E), got {shape(input)}")
    if linear_weight.dim() != 2 or linear_weight.shape[1] != input.shape[-1]:
        raise ValueError(
            f"linear_weight: expected shape (V,E) = (V, {input.shape[-1]}), "
            f"got {shape(linear_weight)}"
        )
    check_same("linear_weight", linear_weight, "input", input)
    check_tensor("target", target, INDEX_DTYPES, "integer class indices")
    check_shape("target", target, tuple(input.shape[:-1]), "of input without its last dimension")
    check_device("target", target, "input", input)
    if linear_bias is not None:
        check_float("linear_bias", linear_bias)
        check_shape("linear_bias", linear_bias, (linear_weight.shape[0],), "(V,)")
        check_same("linear_bias", linear_bias, "input", input)


def _name(group: dist.ProcessGroup | None) -> str:
    return "" if group is None else group.group_name


def _needs_gradient(t: Tensor | None) -> bool:
    return t is not None and t.requires_grad and torch.is_grad_enabled()
