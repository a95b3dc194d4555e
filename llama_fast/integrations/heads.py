"""Forwards of a head and its model whose loss is computed without the logits."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from llama_fast._torch_internals import has_hooks
from llama_fast.integrations import module_state
from llama_fast.integrations.lazy_logits import LazyLogits, lazy_logits
from llama_fast.ops.linear import linear

FLAG = "_llama_fast_is_lazy"  # attribute of a head: whether its model is computing a loss


def head_of(model: nn.Module) -> nn.Linear | str:
    """The head whose logits the loss of `model` uses, or why its loss is not replaced."""
    if "labels" not in inspect.signature(type(model).forward).parameters:
        return "its forward takes no labels"
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        return "it has no head over a vocabulary"
    if type(head) is not nn.Linear:
        return (
            f"its head is {type(head).__module__}.{type(head).__qualname__}, not torch.nn.Linear: "
            "adapters and quantised weights are left as they are"
        )
    if not head.weight.dtype.is_floating_point:
        return f"its head has weights of {head.weight.dtype}"
    return head


def can_be_traced(model: nn.Module) -> bool:
    """Whether torch.compile can trace lazy logits to the loss of `model`.

    It cannot where a forward creates a `torch.nn.CrossEntropyLoss`: for that module it accepts
    tensors only.
    """
    forward = inspect.unwrap(type(model).forward)
    return "CrossEntropyLoss" not in forward.__code__.co_names


def head_forward(head: nn.Linear, input: torch.Tensor) -> torch.Tensor | LazyLogits:
    """The head's forward: logits, lazy ones while its model computes a loss."""
    hooked = has_hooks(head) or module_state.all_modules_hooked()  # hooks expect tensors
    if getattr(head, FLAG, False) and not hooked:
        return lazy_logits(input, head)
    return linear(input, head.weight, head.bias)


def model_forward(
    model: nn.Module, *args: Any, _head: str, _before: Any, _traced: bool, **kwargs: Any
) -> Any:
    """The model's forward; in training with labels its logits are lazy.

    A wrapper of another library may keep it after :func:`llama_fast.unpatch`. Then the head has no
    flag, and this calls the original forward.
    """
    head = model.get_submodule(_head)
    # Not the bound method: torch.compile looks that up by name again and finds ours.
    forward = functools.partial(type(model).forward, model) if _before is None else _before
    lazy = hasattr(head, FLAG) and (_traced or not torch.compiler.is_compiling())
    if not (lazy and model.training and torch.is_grad_enabled()) or not _has_labels(
        model, args, kwargs
    ):
        return forward(*args, **kwargs)
    setattr(head, FLAG, True)
    try:
        return forward(*args, **kwargs)
    finally:
        setattr(head, FLAG, False)


def _has_labels(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if kwargs.get("labels") is not None:
        return True
    if not args:
        return False
    arguments = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
    return arguments.get("labels") is not None
