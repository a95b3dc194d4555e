"""Autograd and vmap rules of the registered operators, with little overhead per call.

A rule registered with `torch.library.register_autograd` serves torch.compile, dispatch modes and
tensor subclasses, but takes about 200 microseconds per call (measured) and does not support
torch.func. Plain eager calls and torch.func run the same rule as an ordinary
`torch.autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from llama_fast._torch_internals import (
    below_autograd,
    has_dispatch_mode,
    in_forward_ad,
    in_transform,
    in_transform_other_than_grad,
    is_jit_tracing,
    transform_depth,
)
from llama_fast.ops.backends import current
from llama_fast.ops.backends.library import library

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _needs_dispatcher(args: tuple[Any, ...]) -> bool:
    """Whether tracing, a dispatch mode or a tensor subclass has to see the call."""
    return (
        torch.compiler.is_compiling()
        or is_jit_tracing()
        or has_dispatch_mode()
        or any(type(a) not in _PLAIN for a in args if isinstance(a, torch.Tensor))
    )


def needs_plain_torch() -> bool:
    """Whether a transform is active that only PyTorch's own operations, so the reference, support.

    These are forward-mode derivatives, torch.func.vmap, and torch.func inside torch.compile.
    """
    if in_forward_ad():
        return True
    return in_transform() if torch.compiler.is_compiling() else in_transform_other_than_grad()


def nested_transforms() -> bool:
    """Whether one transform of torch.func is inside another."""
    # In a compiled graph, `needs_plain_torch` detects transforms.
    return not torch.compiler.is_compiling() and transform_depth() > 1


def empty_like_heads(
    t: torch.Tensor, dtype: torch.dtype | None = None, last: int | None = None
) -> torch.Tensor:
    """An empty tensor with the shape and layout of an output for the input `t`.

    It is contiguous, unless `t` is a (B,H,S,D) view of a (B,S,H,D) tensor: then it is such a view.
    `last` replaces the size of the last dimension. Must agree with `new_like_heads` in
    csrc/glue and in kernels/_launch.py.
    """
    shape = t.shape if last is None else (*t.shape[:-1], last)
    if t.dim() == 4 and t.stride(1) < t.stride(2):
        B, H, S, D = shape
        return t.new_empty(B, S, H, D, dtype=dtype).transpose(1, 2)
    return t.new_empty(shape, dtype=dtype)


def _loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a vmap rule that calls `function` once for each element of the mapped dimension."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        calls = [
            function(
                *(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))
            )
            for i in range(info.batch_size)
        ]
        if isinstance(calls[0], torch.Tensor):
            return torch.stack(calls), 0
        outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
        return outputs, (0,) * len(outputs)

    return rule


def loop_over_vmap(name: str) -> None:
    """Let `torch.func.vmap` call `llama_fast::<name>` once for each element."""
    operator = getattr(torch.ops.llama_fast, name).default
    torch.library.register_vmap(f"llama_fast::{name}", _loop(operator), lib=library)


def saves_backend(setup_context: Callable[..., None]) -> Callable[..., None]:
    """Wrap `setup_context` to also save the selected backends, for `with_backend`."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, output)
        if not torch.compiler.is_compiling():
            ctx.backends = current.current()

    return save


def with_backend(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `backward` to use its forward's backends, in any thread and after the `with` block."""

    def run(ctx: Any, *grads: Any) -> Any:
        if torch.compiler.is_compiling() or not hasattr(ctx, "backends"):
            return backward(ctx, *grads)
        with current.in_force(ctx.backends):
            return backward(ctx, *grads)

    return run


def differentiable(
    name: str,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Register the autograd rule of `llama_fast::<name>`; returns the function that calls it.

    Args:
        name: name of an operator that does not modify its arguments.
        setup_context: called with ``(ctx, inputs, output)``; saves what `backward` needs.
        backward: called with ``(ctx, *grads)``; returns one gradient or None for each input.
    """
    setup_context, backward = saves_backend(setup_context), with_backend(backward)
    torch.library.register_autograd(
        f"llama_fast::{name}", backward, setup_context=setup_context, lib=library
    )
    operator = getattr(torch.ops.llama_fast, name).default
    forward = below_autograd(operator)

    def forward_and_save(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        setup_context(ctx, args, output)
        return output

    def call(*args: Any) -> Any:
        if _needs_dispatcher(args):
            return operator(*args)
        if in_transform():
            return transformed.apply(*args)
        if torch.is_grad_enabled() and any(
            isinstance(a, torch.Tensor) and a.requires_grad for a in args
        ):
            return eager.apply(*args)
        return forward(*args)

    def function(**members: Callable[..., Any]) -> Any:
        methods = {key: staticmethod(member) for key, member in members.items()}
        return type(f"llama_fast_{name}", (torch.autograd.Function,), methods)

    # torch.func requires a separate setup_context, which costs eager calls 20 microseconds.
    eager = function(forward=forward_and_save, backward=backward)
    transformed = function(
        forward=forward, setup_context=setup_context, backward=backward, vmap=_loop(call)
    )
    return call
