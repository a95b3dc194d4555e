"""Replacements for torch's own modules: attention, transformer layers and losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from llama_fast.ops.torch_functions import accelerated

# torch's class -> the option of `patch` that it belongs to
PARTS: dict[type[nn.Module], str] = {
    nn.MultiheadAttention: "attention",
    nn.TransformerEncoder: "attention",  # it creates nested tensors for torch's layers
    nn.TransformerEncoderLayer: "attention",
    nn.TransformerDecoderLayer: "attention",
    nn.CrossEntropyLoss: "loss",
}
if hasattr(nn, "LinearCrossEntropyLoss"):  # since torch 2.13
    PARTS[nn.LinearCrossEntropyLoss] = "loss"


def part_of(module: nn.Module) -> str | None:
    """The option of `patch` that replaces one of torch's modules; None for other modules."""
    return next((part for cls, part in PARTS.items() if isinstance(module, cls)), None)


def replacement(module: nn.Module) -> Callable[..., Any] | str | None:
    """Our forward for one of torch's modules; a reason for a subclass; None for all others."""
    if type(module) in PARTS:
        return accelerated_forward
    if part_of(module) is None or type(module).__module__.startswith("llama_fast."):
        return None
    return "a subclass of torch's class, which may compute something else"


def accelerated_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """torch's forward, with its attention and losses on our kernels."""
    return accelerated(type(module).forward, module, *args, **kwargs)
