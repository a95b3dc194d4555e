"""Selects our attention for single instances of transformers' models."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llama_fast.integrations import forward
from llama_fast.integrations.report import Entry
from llama_fast.integrations.transformers.attention import NAME
from llama_fast.integrations.transformers.masks import Mask

_BEFORE = "_llama_fast_attention_before"


def pretrained(model: nn.Module) -> Iterator[tuple[str, PreTrainedModel]]:
    """(name, model) of the models of transformers in a module, including itself."""
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            yield name, module


def patch_attention(model: nn.Module) -> list[Entry]:
    """Select our attention in every layer that uses transformers' attention interface."""
    models = [m for _, m in pretrained(model)]
    _copy_configs(model)
    for m in models:
        if not m._can_set_attn_implementation() or m.config._attn_implementation == NAME:
            continue
        if not m.config.output_attentions:
            setattr(m, _BEFORE, m.config._attn_implementation)
    _select_attention(model, ours=True)
    return list(_entries(model))


def return_weights(model: PreTrainedModel) -> None:
    """Make calls with ``output_attentions=True`` run the attention from before the patch.

    The whole call runs on it (transformers' "eager", for example): our attention returns no
    weights, and each implementation has its own masks.
    """
    if not hasattr(model, _BEFORE):
        return
    current = vars(model).get("forward")
    inner = current if isinstance(current, forward.Forward) else None
    forward.replace(
        model,
        functools.partial(
            _forward_with_weights,
            _inner=inner and functools.partial(inner.func, **inner.keywords),
            _before=None if inner else current,
        ),
    )


def _forward_with_weights(
    model: PreTrainedModel, *args: Any, _inner: Any, _before: Any, **kwargs: Any
) -> Any:
    if _inner is not None:
        call = functools.partial(_inner, model)
    else:  # not the bound method: torch.compile looks that up by name and finds ours
        call = functools.partial(type(model).forward, model) if _before is None else _before
    # A wrapper of another library may keep this function after unpatch.
    if not hasattr(model, _BEFORE) or not _wants_weights(model, args, kwargs):
        return call(*args, **kwargs)
    if model.training and torch.is_grad_enabled() and _is_checkpointed(model):
        raise ValueError(
            "output_attentions: expected False in a patched model with activation checkpointing "
            "(its backward pass would recompute layers with our attention), got True; use "
            "llama_fast.patch(model, attention=False)"
        )
    before = getattr(model, _BEFORE)
    for name, mask in kwargs.items():
        if name.endswith("attention_mask"):
            kwargs[name] = _mask_for(before, mask, model.dtype)
    _select_attention(model, ours=False)
    try:
        return call(*args, **kwargs)
    finally:
        _select_attention(model, ours=True)


def _is_checkpointed(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _mask_for(before: str, mask: Any, dtype: torch.dtype) -> Any:
    """A mask that generation made with our mask function, in the form of `before`."""
    if isinstance(mask, dict):  # by layer type
        if any(one is None for one in mask.values()):  # no padding: the model makes its own masks
            return None
        return {layer: _mask_for(before, one, dtype) for layer, one in mask.items()}
    if not isinstance(mask, Mask):
        return mask
    visible = mask.dense()
    if before != "eager":
        return visible
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def _wants_weights(model: PreTrainedModel, args: tuple[Any, ...], kwargs: Any) -> bool:
    if not args or "output_attentions" in kwargs:
        return bool(kwargs.get("output_attentions"))
    parameters = list(inspect.signature(type(model).forward).parameters)[1:]
    return bool(dict(zip(parameters, args, strict=False)).get("output_attentions"))


def _select_attention(model: nn.Module, ours: bool) -> None:
    """Select our attention, or the one from before, in every patched model in `model`."""
    for _, m in pretrained(model):
        before = getattr(m, _BEFORE, None)
        if before is not None:
            m.config._attn_implementation_internal = NAME if ours else before


def unpatch_attention(model: nn.Module) -> None:
    """Select the attention from before the patch again."""
    for _, m in pretrained(model):
        before = getattr(m, _BEFORE, None)
        if before is not None:
            delattr(m, _BEFORE)
            m.config._attn_implementation_internal = before


def _copy_configs(model: nn.Module) -> None:
    """Give the modules their own configs: several models may share one object."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PreTrainedConfig):
                setattr(module, name, copy.deepcopy(value, memo))


def _entries(model: nn.Module) -> Iterator[Entry]:
    """A report entry for each layer that computes attention."""
    for name, module in model.named_modules():
        cls = type(module)
        config = getattr(module, "config", None)
        uses_interface = "ALL_ATTENTION_FUNCTIONS" in getattr(
            getattr(inspect.unwrap(cls.forward), "__code__", None), "co_names", ()
        )
        if uses_interface:
            ours = getattr(config, "_attn_implementation", None) == NAME
            reason = "" if ours else "its model does not support a choice of the implementation"
            if not ours and getattr(config, "output_attentions", False):
                reason = "its configuration asks for attention weights (output_attentions)"
            yield Entry(name, cls.__name__, "attention", ours, reason)
        elif cls.__name__.endswith("Attention") and not any(
            type(m).__name__.endswith("Attention") for m in module.children()
        ):
            reason = "it computes attention itself, not through transformers' interface"
            yield Entry(name, cls.__name__, "attention", False, reason)
