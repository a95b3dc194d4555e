"""The operators behind `cross_entropy`: shape rules, derivatives, and the in-place function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from llama_fast import reference
from llama_fast._torch_internals import below_autograd, keeps_graph
from llama_fast.ops._autograd import differentiable, saves_backend, with_backend
from llama_fast.ops.backends.library import library
from llama_fast.reference import CrossEntropyOptions
from llama_fast.reference._dtypes import compute_dtype
from llama_fast.reference.cross_entropy import MEAN, NONE, class_dim, token_shape

# --- shapes ----------------------------------------------------------------------------------


@torch.library.register_fake("llama_fast::cross_entropy_inplace", lib=library)
@torch.library.register_fake("llama_fast::cross_entropy", lib=library)
def _shapes(input: torch.Tensor, target: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
    options, (stats,) = CrossEntropyOptions.split(arguments)
    tokens = token_shape(input)
    loss = input.new_empty(tokens if options.reduction == NONE else (), dtype=compute_dtype(input))
    # float64: with logits near 1e4, a float32 lse would leave the gradient three correct digits.
    lse = input.new_empty(tokens, dtype=torch.float64)
    z_part = torch.empty_like(loss) if stats else loss.new_empty(0)
    return loss, lse, z_part, input.new_empty(tokens if stats else (0,), dtype=torch.int64)


@torch.library.register_fake("llama_fast::cross_entropy_backward", lib=library)
def _backward_shapes(
    grad_loss: torch.Tensor, input: torch.Tensor, *others: Any, **options: Any
) -> torch.Tensor:
    return torch.empty_like(input)


# --- first derivative ------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    input, target, weight, *options, stats = inputs
    # Without `stats` the lse of ignored tokens is undefined, so lse is not differentiable.
    ctx.mark_non_differentiable(*output[2 if stats else 1 :])
    ctx.set_materialize_grads(False)
    # Class indices are copied, because a loader may overwrite them before the backward pass: a
    # token that was ignored has no lse to use with a new target. Probabilities are as large as the
    # logits, so they are not copied.
    kept = target if target.is_floating_point() else target.clone()
    ctx.save_for_backward(input, output[1], kept, weight)
    ctx.options = options


def _backward(
    ctx: Any, grad_loss: torch.Tensor | None, grad_lse: torch.Tensor | None, *_: None
) -> tuple[Any, ...]:
    grad_input = grad_target = None
    if grad_loss is not None or grad_lse is not None:
        input, lse, target, weight = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            gradient = _gradient if torch.is_grad_enabled() else _gradient_kernel
            if grad_loss is None:
                grad_input = _lse_gradient(gradient, grad_lse, input, lse, ctx.options)
            else:
                args = grad_loss, input, lse, target, weight, *ctx.options, grad_lse
                grad_input = gradient(*args)
        if grad_loss is not None and ctx.needs_input_grad[1]:
            options = CrossEntropyOptions(weight, *ctx.options)
            grad_target = _target_gradient(grad_loss, input, target, options)
    return grad_input, grad_target, *(None,) * 7


def _lse_gradient(
    gradient: Callable[..., Any],
    grad_lse: torch.Tensor,
    input: torch.Tensor,
    lse: torch.Tensor,
    options: list[Any],
) -> torch.Tensor:
    """The gradient of lse alone, computed as that of a loss whose targets are all ignored."""
    *_, softcap, _ = options
    no_loss = torch.zeros_like(grad_lse, dtype=compute_dtype(input))
    ignored = torch.full_like(grad_lse, -100, dtype=torch.int64)
    no_options = CrossEntropyOptions(reduction=NONE, softcap=softcap)
    return gradient(no_loss, input, lse, ignored, *no_options, grad_lse)


def _target_gradient(
    grad_loss: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    options: CrossEntropyOptions,
) -> torch.Tensor:
    """Gradient of probability targets: (1 - e) w_c (lse - z_c) for each token."""
    dim, weight, softcap = class_dim(input), options.weight, options.softcap
    z = input.to(compute_dtype(input))
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    each = -torch.log_softmax(z, dim=dim)
    if weight is not None:
        each = each * weight.view(-1, *[1] * (input.dim() - 1 - dim))
    if options.reduction == MEAN:
        grad_loss = grad_loss * (max(input.shape[dim], 1) / max(input.numel(), 1))
    elif options.reduction == NONE:
        grad_loss = grad_loss.unsqueeze(dim)
    return (grad_loss * (1 - options.label_smoothing) * each).to(target.dtype)


# --- second derivative -----------------------------------------------------------------------


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    grad_loss, input, _, target, weight, *options, grad_lse = inputs
    ctx.save_for_backward(grad_loss, grad_lse, input, target, weight)
    ctx.options = options


def _second_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """The derivative of the gradient, by differentiating the reference twice.

    lse gets no derivative: the gradient is treated as a function of the logits alone.
    """
    grad_loss, grad_lse, input, target, weight = ctx.saved_tensors
    options = CrossEntropyOptions(weight, *ctx.options)
    tensors = {"grad_loss": grad_loss, "input": input}
    if grad_lse is not None:
        tensors["grad_lse"] = grad_lse
    if target.is_floating_point():
        tensors["target"] = target

    def gradient(*values: torch.Tensor) -> torch.Tensor:
        given = dict(zip(tensors, values, strict=True))

        def outputs(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            goal = given.get("target", target)
            loss, stats = reference.cross_entropy(x, goal, options, return_stats=True)
            return (loss, stats.lse) if "grad_lse" in given else (loss,)

        made, vjp = torch.func.vjp(outputs, given["input"])
        upstream = [given[name] for name in ("grad_loss", "grad_lse") if name in given]
        return vjp(tuple(g.to(out.dtype) for g, out in zip(upstream, made, strict=True)))[0]

    second = torch.func.vjp(gradient, *tensors.values())[1](grad)
    grads = dict(zip(tensors, second, strict=True))
    of_options = (None,) * 6
    return (
        grads["grad_loss"], grads["input"], None, grads.get("target"), *of_options,
        grads.get("grad_lse"),
    )  # fmt: skip


# --- ways to call the operators --------------------------------------------------------------


_loss_kernel = below_autograd(torch.ops.llama_fast.cross_entropy.default)
_inplace_kernel = below_autograd(torch.ops.llama_fast.cross_entropy_inplace.default)
_gradient_kernel = below_autograd(torch.ops.llama_fast.cross_entropy_backward.default)
_gradient = differentiable("cross_entropy_backward", _setup_second, _second_backward)
# (input, target, *options, stats) -> (loss, lse, z_loss, argmax), for tensors of every class and
# under every transform.
general_loss = differentiable("cross_entropy", _setup_context, _backward)


_setup_and_backend = saves_backend(_setup_context)


class _Loss(torch.autograd.Function):
    # `forward` also saves for the backward, without a `setup_context`. torch.func cannot use such a
    # Function, but a call takes 15 microseconds instead of 40, which matters for a small input.
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[torch.Tensor, ...]:
        out = _loss_kernel(*args)
        _setup_and_backend(ctx, args, out)
        return out

    backward = staticmethod(with_backend(_backward))


def eager_loss(input: torch.Tensor, target: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    """`general_loss` for plain tensors, eager and outside torch.func."""
    if torch.is_grad_enabled() and (input.requires_grad or target.requires_grad):
        return _Loss.apply(input, target, *args)
    return _loss_kernel(input, target, *args)


class InplaceLoss(torch.autograd.Function):
    """`eager_loss` overwriting the logits with their gradient, for an upstream gradient of 1."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
        out = _inplace_kernel(input, *args)
        torch.autograd.graph.increment_version(input)
        ctx.gradient = input.detach()  # shares the version counter
        ctx.version = input._version
        ctx.mark_non_differentiable(*out[2 if args[-1] else 1 :])
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(
        ctx: Any, grad_loss: torch.Tensor | None, grad_lse: torch.Tensor | None, *_: None
    ) -> tuple[Any, ...]:
        nothing = (None,) * 8
        if grad_lse is not None:
            raise RuntimeError(
                "cross_entropy(inplace=True): expected no gradient of stats.lse, which needs the "
                "logits, and these are overwritten; use inplace=False, or stats.lse.detach()"
            )
        if grad_loss is None:
            return None, *nothing
        if torch.is_grad_enabled():
            raise RuntimeError(
                "cross_entropy(inplace=True): expected a backward pass without create_graph, since "
                "a second derivative needs the logits, which are overwritten; use inplace=False"
            )
        gradient = ctx.gradient
        if gradient is None:
            raise RuntimeError(
                "cross_entropy(inplace=True): trying to backward a second time, but the first "
                "backward pass did not retain the graph and has used up the gradient; call it "
                "with retain_graph=True"
            )
        if gradient._version != ctx.version:
            raise RuntimeError(
                "cross_entropy(inplace=True): its input, which holds the gradient now, was "
                "modified by an in-place operation before the backward pass"
            )
        if keeps_graph():
            gradient = gradient.clone()  # the next backward pass needs it again
        else:
            ctx.gradient = None
        if grad_loss.dim() > 0:
            if not bool((grad_loss == 1).all()):
                gradient.mul_(grad_loss.unsqueeze(class_dim(gradient)))
        elif grad_loss.item() != 1.0:
            gradient.mul_(grad_loss)
        return gradient, *nothing
