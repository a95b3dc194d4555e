"""The operators behind `linear_cross_entropy`: choice of the operator, shape and autograd rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama_fast import reference
from llama_fast._grad_mask import grad_mask
from llama_fast._torch_internals import (
    has_dispatch_mode,
    in_transform,
    is_batch_of_gradients,
    keeps_graph,
    without_grad_wrapper,
)
from llama_fast.ops._autograd import saves_backend, with_backend
from llama_fast.ops.backends.library import library
from llama_fast.ops.chunked import empty_results, resolve_group
from llama_fast.reference._dtypes import compute_dtype
from llama_fast.reference.cross_entropy import NONE, CrossEntropyOptions


@torch.library.register_fake("llama_fast::linear_cross_entropy", lib=library)
def _shapes(
    input: Tensor, linear_weight: Tensor, target: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    # float16 would round small gradients to zero before they are scaled.
    dtype = torch.float32 if input.dtype == torch.float16 else input.dtype
    dtypes = (dtype, dtype, compute_dtype(input))
    return empty_results(input, linear_weight, target, dtypes, *arguments)


def _run(
    tensors: Sequence[Tensor | None],
    target: Tensor,
    options: CrossEntropyOptions,
    group_name: str | None,
    stats: bool,
    wanted: list[bool],
    *,
    grad_loss: Tensor | None = None,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Call the compiled operator if `group_name` is None, else the one in ``chunked.py``.

    `tensors` are input, linear_weight and linear_bias; `wanted` says which need gradients.
    """
    ops = torch.ops.llama_fast
    input, linear_weight, linear_bias = tensors
    others = (linear_bias, grad_loss, *options, stats, grad_mask(wanted), grad_lse)
    if group_name is None:
        return ops.linear_cross_entropy(input, linear_weight, target, *others)
    return ops.linear_cross_entropy_chunked(input, linear_weight, target, *others, group_name)


def _second_derivative_wanted(*saved: Tensor | None) -> bool:
    """Whether the results of the current backward pass will be differentiated."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    # torch.func.grad always enables gradients here, so look at the tensors inside its wrappers.
    return any(t is not None and without_grad_wrapper(t).requires_grad for t in saved)


class LinearCrossEntropy(torch.autograd.Function):
    """Autograd rule of both operators.

    A scalar loss has a scalar upstream gradient, so the forward pass computes the gradients for an
    upstream gradient of one and the backward pass scales them. The gradients of float16 arguments
    stay in float32 until then: rounded to float16 before the loss scale, small ones would be zero.
    Without reduction the backward pass computes them, with the upstream gradient of each token.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
        weight: Tensor | None, ignore_index: int, reduction: int, label_smoothing: float,
        softcap: float, z_loss: float, group_name: str | None, stats: bool, wanted: list[bool],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        # Options are separate parameters: torch.compile miscounts `*args` if a tensor occurs twice.
        options = CrossEntropyOptions(
            weight, ignore_index, reduction, label_smoothing, softcap, z_loss
        )
        now = [want and options.reduction != NONE for want in wanted]
        return _run((input, linear_weight, linear_bias), target, options, group_name, stats, now)

    @staticmethod
    @saves_backend
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, linear_weight, linear_bias, target, weight, *options, group_name, _, wanted = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.options, ctx.group_name, ctx.wanted = options, group_name, wanted
        # The caller, a data loader for example, may overwrite the targets before the backward pass.
        kept = (input, linear_weight, linear_bias, target.clone(), weight)
        ctx.save_for_backward(*kept, *output[4:])

    @staticmethod
    @with_backend
    def backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Any, ...]:
        if grad_loss is None:
            return (None,) * 13
        *inputs, target, weight, g_input, g_weight, g_bias = ctx.saved_tensors
        options = CrossEntropyOptions(weight, *ctx.options)
        if _second_derivative_wanted(*inputs, grad_loss):
            second = _differentiable_gradients(ctx, grad_loss, inputs, target, options)
            return (*second, *[None] * 10)
        if options.reduction == NONE:
            made = _run(
                inputs, target, options, ctx.group_name, False, ctx.wanted, grad_loss=grad_loss
            )[4:]
        else:
            made = tuple(_scaled(grad, grad_loss) for grad in (g_input, g_weight, g_bias))
        return (*_wanted(made, inputs, ctx.wanted), *[None] * 10)


class LogSumExp(torch.autograd.Function):
    """Makes `lse` differentiable: the backward pass computes the logits once more.

    It is separate from the loss, so that a gradient of one of the two costs nothing for the other.
    In a single function torch.compile would fill the missing gradient with zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor,
        lse: Tensor, ignore_index: int, softcap: float, group_name: str | None, wanted: list[bool],
    ) -> Tensor:  # fmt: skip
        return lse.clone()

    @staticmethod
    @saves_backend
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, linear_weight, linear_bias, target, _, ignore_index, softcap, *others = inputs
        ctx.options = CrossEntropyOptions(None, ignore_index, NONE, 0.0, softcap, 0.0)
        ctx.group_name, ctx.wanted = others
        ctx.save_for_backward(input, linear_weight, linear_bias, target.clone())

    @staticmethod
    @with_backend
    def backward(ctx: Any, grad_lse: Tensor) -> tuple[Any, ...]:
        *inputs, target = ctx.saved_tensors
        if _second_derivative_wanted(*inputs, grad_lse):
            second = _differentiable_gradients(
                ctx, grad_lse, inputs, target, ctx.options, of_lse=True
            )
            return (*second, *[None] * 6)
        made = _run(
            inputs, target, ctx.options, ctx.group_name, False, ctx.wanted, grad_lse=grad_lse
        )[4:]
        return (*_wanted(made, inputs, ctx.wanted), *[None] * 6)


def _wanted(
    made: tuple[Tensor, ...], inputs: list[Tensor], wanted: list[bool]
) -> list[Tensor | None]:
    """Cast the gradients to the dtypes of the inputs; None where a gradient is not wanted."""
    return [
        grad.to(x.dtype) if want else None
        for grad, x, want in zip(made, inputs, wanted, strict=True)
    ]


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """Return grad * scale, in place if eager mode can tell that `grad` is not needed again."""
    eager = not torch.compiler.is_compiling() and not in_transform() and not has_dispatch_mode()
    if not eager or grad.device.type != "cpu" or is_batch_of_gradients(scale):
        return grad * scale
    factor = scale.item()
    if keeps_graph():
        return grad * factor  # the next backward pass needs `grad` again
    return grad if factor == 1.0 else grad.mul_(factor)


def _differentiable_gradients(
    ctx: Any,
    upstream: Tensor,
    inputs: list[Tensor],
    target: Tensor,
    options: CrossEntropyOptions,
    of_lse: bool = False,
) -> list[Tensor | None]:
    """The gradients by autograd through the reference, for the rare second derivatives."""
    with torch.enable_grad():
        # Views, so that two arguments that share a tensor (a tied weight) get a gradient each.
        views = [None if x is None else x.view_as(x) for x in inputs]
        input, linear_weight, linear_bias = views
        assert input is not None and linear_weight is not None
        group = resolve_group(ctx.group_name or "")
        loss, stats = reference.linear_cross_entropy(
            input, linear_weight, target, linear_bias, options,
            process_group=group, return_stats=True,
        )  # fmt: skip
        output = stats.lse if of_lse else loss
        chosen = [
            x if x is not None and want and x.requires_grad else None
            for x, want in zip(views, ctx.wanted, strict=True)
        ]
        some = [x for x in chosen if x is not None]
        made = iter(torch.autograd.grad(output, some, upstream, create_graph=True))
    return [None if x is None else next(made) for x in chosen]
