"""Models whose loss never builds the logits: the head's part and the model's."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from llama_fast._torch_internals import has_hooks
from llama_fast.integrations import watch
from llama_fast.integrations.lazy_logits import LazyLogits, stand_for
from llama_fast.ops.linear import linear

FLAG = "_llama_fast_is_lazy"  # of a head: whether its model is making a loss


def head_of(model: nn.Module) -> nn.Linear | str:
    """The head whose logits make the loss of `model`, or why its loss is left alone."""
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
    """Whether torch.compile can follow lazy logits to the loss of `model`.

    It has its own notion of the module `torch.nn.CrossEntropyLoss` made within a forward, which
    takes nothing but tensors.
    """
    forward = inspect.unwrap(type(model).forward)
    return "CrossEntropyLoss" not in forward.__code__.co_names


def head_forward(head: nn.Linear, input: torch.Tensor) -> torch.Tensor | LazyLogits:
    """The head's forward: logits, or what stands for them while the model makes its loss."""
    hooked = has_hooks(head) or watch.is_everything_hooked()  # which expect tensors
    if getattr(head, FLAG, False) and not hooked:
        return stand_for(input, head)
    return linear(input, head.weight, head.bias)


def model_forward(
    model: nn.Module, *args: Any, _head: str, _before: Any, _traced: bool, **kwargs: Any
) -> Any:
    """The model's forward; in training with labels its logits are lazy.

    A wrapper of another library may hold on to it when the kernels are taken out: then the head has
    no flag, and this does nothing.
    """
    head = model.get_submodule(_head)
    # No bound method, which torch.compile looks up again by its name: that finds ours.
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
    given = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
    return given.get("labels") is not None
