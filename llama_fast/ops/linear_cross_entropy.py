"""Projection onto the vocabulary and softmax cross-entropy in one, without the (N,V) logits."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch

from llama_fast import reference
from llama_fast.ops import stock
from llama_fast.ops._autograd import needs_plain_torch, nested_transforms
from llama_fast.ops._checks import (
    check_choice,
    check_device,
    check_float,
    check_number,
    check_same,
    check_shape,
    check_targets,
    check_tensor,
    integer,
    number,
    shape,
)
from llama_fast.ops._linear_cross_entropy import LinearCrossEntropy, LogSumExp
from llama_fast.ops._subclasses import overridable
from llama_fast.ops.backends.choice import choose
from llama_fast.ops.chunked import REDUCTIONS
from llama_fast.reference import Stats

INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@overridable
def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    shift: bool = False,
    process_group: torch.distributed.ProcessGroup | None = None,
    return_stats: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, Stats]:
    """cross_entropy(input @ linear_weight.T + linear_bias, target), without the (N,V) logits.

    Computed and accumulated in float32 (float64 for float64 input). Tokens whose target is ignored
    take part in no matrix product. With reduction "mean" or "sum" the gradients are made in the
    forward pass, so the backward pass costs next to nothing; frozen arguments cost nothing.

    Args:
        input: (..., E), usually hidden states (N,E) or (B,S,E); float64, float32, bfloat16 or
            float16.
        linear_weight: (V,E), the dtype of `input`.
        target: (...), class indices in [0, V) of any integer type, or `ignore_index`.
        linear_bias: (V,), the dtype of `input`.
        weight: (V,), weight of each class, any float dtype; not differentiable.
        reduction: "none", "mean" (over the class weights of the targets that are not ignored) or
            "sum".
        ignore_index: target value of the tokens that count for nothing.
        label_smoothing: in [0, 1], the share of the target spread evenly over all classes.
        softcap: logits become softcap * tanh(logits / softcap).
        z_loss: adds z_loss * lse^2 to the loss of each token.
        shift: position t of the last token dimension predicts the target at t + 1; the last
            position and the first target are dropped, in the shapes of the results too.
        process_group: vocabulary-parallel: each of the group's W ranks passes its V/W rows of
            `linear_weight` and `linear_bias`, in rank order, and everything else in full. Every
            rank gets the same loss, the full gradient of `input`, and that of its own rows.
        return_stats: also return `Stats`.

    Returns:
        The loss, float32 (float64 for float64 input): a scalar, or the shape of `target` for
        "none". With `return_stats` (loss, Stats(lse, argmax, correct, z_loss)); of an ignored
        token lse is 0 and argmax -1. lse is differentiable, the rest of the statistics is not; its
        gradient takes a second pass over the logits.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit, or an option out of its range.
        IndexError: a target that is neither a class index nor `ignore_index`; on a GPU, where
            finding out would hold up the host, its loss is NaN instead.
    """
    check_float("input", input)
    check_float("linear_weight", linear_weight)
    device_type = input.device.type
    can_autocast = torch.amp.is_autocast_available(device_type)
    if can_autocast and torch.is_autocast_enabled(device_type):  # as F.linear does
        narrow = torch.get_autocast_dtype(device_type)
        input, linear_weight, linear_bias = (
            x.to(narrow) if x is not None and x.dtype != torch.float64 else x
            for x in (input, linear_weight, linear_bias)
        )
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
    world = 1 if process_group is None else process_group.size()
    classes = linear_weight.shape[0] * world
    if linear_bias is not None:
        check_float("linear_bias", linear_bias)
        check_shape("linear_bias", linear_bias, (linear_weight.shape[0],), "(V,)")
        check_same("linear_bias", linear_bias, "input", input)
    if weight is not None:
        check_float("weight", weight)
        check_shape("weight", weight, (classes,), "(V,)")
        check_device("weight", weight, "input", input)
        if _needs_gradient(weight):
            raise ValueError("weight: expected a tensor that does not require grad")
    check_choice("reduction", reduction, REDUCTIONS)
    ignore_index = integer("ignore_index", ignore_index)
    label_smoothing, z_loss = number("label_smoothing", label_smoothing), number("z_loss", z_loss)
    softcap = None if softcap is None else number("softcap", softcap)
    smooth, capped = 0 <= label_smoothing <= 1, softcap is None or 0 < softcap < math.inf
    check_number("label_smoothing", label_smoothing, "a number in [0, 1]", smooth)
    check_number("softcap", softcap, "a positive finite number or None", capped)
    check_number("z_loss", z_loss, "a finite number >= 0", 0 <= z_loss < math.inf)

    backend = choose("linear_cross_entropy", input)
    if needs_plain_torch() or nested_transforms():
        if process_group is not None:
            raise ValueError(
                "process_group: expected None under forward-mode derivatives and under torch.func "
                "(but for one torch.func.grad or vjp), got a group"
            )
        backend = "torch" if backend == "torch" else "reference"
    if backend in ("torch", "reference"):
        check_targets(target[..., 1:] if shift else target, classes, ignore_index)
        function = stock if backend == "torch" else reference
        with torch.autocast(device_type, enabled=False) if can_autocast else nullcontext():
            return function.linear_cross_entropy(
                input,
                linear_weight,
                target,
                linear_bias=linear_bias,
                weight=weight,
                reduction=reduction,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                softcap=softcap,
                z_loss=z_loss,
                shift=shift,
                process_group=process_group,
                return_stats=return_stats,
            )

    if shift:
        input, target = input[..., :-1, :], target[..., 1:]
    if backend != "triton" or not input.is_cuda:  # on a GPU the host would have to wait
        check_targets(target, classes, ignore_index)
    rows, flat = input.reshape(target.numel(), input.shape[-1]), target.reshape(-1).long()
    # The compiled kernel knows no process groups, and Triton's neither.
    compiled = backend in ("cpu", "triton") and process_group is None
    group_name = None if compiled else _name(process_group)
    wanted = [_needs_gradient(x) for x in (input, linear_weight, linear_bias)]
    loss, lse, z_part, argmax = LinearCrossEntropy.apply(
        rows,
        linear_weight,
        linear_bias,
        flat,
        weight,
        ignore_index,
        REDUCTIONS.index(reduction),
        label_smoothing,
        softcap or 0.0,
        z_loss,
        group_name,
        return_stats,
        wanted,
    )[:4]
    if reduction == "none":
        loss, z_part = loss.view(target.shape), z_part.view(target.shape)
    if not return_stats:
        return loss
    if any(wanted):
        lse = LogSumExp.apply(
            rows, linear_weight, linear_bias, flat, lse, ignore_index, softcap or 0.0, group_name,
            wanted,
        )  # fmt: skip
    lse, argmax = lse.view(target.shape), argmax.view(target.shape)
    correct = (argmax == target) & (target != ignore_index)
    return loss, Stats(lse, argmax, correct, z_part)


def _name(group: torch.distributed.ProcessGroup | None) -> str:
    return "" if group is None else group.group_name


def _needs_gradient(t: torch.Tensor | None) -> bool:
    return t is not None and t.requires_grad and torch.is_grad_enabled()
