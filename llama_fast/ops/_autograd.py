"""Autograd rules for the registered operators, and a short way to call them in eager mode.

A rule registered with `torch.library.register_autograd` serves torch.compile, torch.func and
tensor subclasses, but costs some 200 microseconds a call (measured). A plain eager call needs
none of that machinery: the same rule then runs as an ordinary `torch.autograd.Function`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from llama_fast.ops._library import library

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _is_plain_eager(args: tuple[Any, ...]) -> bool:
    """Whether nothing but autograd watches this call: no tracing, transform, mode or subclass."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and all(type(a) in _PLAIN for a in args if isinstance(a, torch.Tensor))
    )


def differentiable(
    name: str,
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Register the autograd rule of `llama_fast::<name>`; returns the function that calls it.

    Args:
        name: of the operator, which must not change its arguments.
        setup_context: ``(ctx, inputs, output)``, saves what `backward` needs.
        backward: ``(ctx, *grads)``, one gradient or None for each input.
    """
    torch.library.register_autograd(
        f"llama_fast::{name}", backward, setup_context=setup_context, lib=library
    )
    operator = getattr(torch.ops.llama_fast, name).default

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    def call(*args: Any) -> Any:
        if not _is_plain_eager(args):
            return operator(*args)
        if torch.is_grad_enabled() and any(
            isinstance(a, torch.Tensor) and a.requires_grad for a in args
        ):
            return Eager.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    Eager.__name__ = Eager.__qualname__ = f"llama_fast::{name}"
    return call
