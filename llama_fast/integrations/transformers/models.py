"""Models of transformers: whose attention is ours, instance by instance."""

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
    """The models of transformers in a module, itself among them."""
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            yield name, module


def patch_attention(model: nn.Module) -> list[Entry]:
    """Have our attention serve in every layer that goes through transformers' interface."""
    models = [m for _, m in pretrained(model)]
    _own_configs(model)
    for m in models:
        if not m._can_set_attn_implementation() or m.config._attn_implementation == NAME:
            continue
        if not m.config.output_attentions:
            setattr(m, _BEFORE, m.config._attn_implementation)
    _choose(model, ours=True)
    return list(_entries(model))


def return_weights(model: PreTrainedModel) -> None:
    """Have calls with ``output_attentions=True`` give what the model gave before the patch.

    They run as a whole on the implementation from before, as stock's "eager": our attention has no
    weights, and masks belong to an implementation.
    """
    if not hasattr(model, _BEFORE):
        return
    found = vars(model).get("forward")
    inner = found if isinstance(found, forward.Forward) else None
    forward.replace(
        model,
        functools.partial(
            _forward_with_weights,
            _inner=inner and functools.partial(inner.func, **inner.keywords),
            _before=None if inner else found,
        ),
    )


def _forward_with_weights(
    model: PreTrainedModel, *args: Any, _inner: Any, _before: Any, **kwargs: Any
) -> Any:
    if _inner is not None:
        call = functools.partial(_inner, model)
    else:  # no bound method, which torch.compile looks up again by its name: that finds ours
        call = functools.partial(type(model).forward, model) if _before is None else _before
    # After unpatching a wrapper of another library may still hold on to this.
    if not hasattr(model, _BEFORE) or not _asks_for_weights(model, args, kwargs):
        return call(*args, **kwargs)
    if model.training and torch.is_grad_enabled() and _is_checkpointed(model):
        raise ValueError(
            "output_attentions: expected False in a patched model with activation checkpointing, "
            "whose backward pass runs layers again, by our attention; got True; use "
            "llama_fast.patch(model, attention=False)"
        )
    before = getattr(model, _BEFORE)
    for name, mask in kwargs.items():
        if name.endswith("attention_mask"):
            kwargs[name] = _mask_for(before, mask, model.dtype)
    _choose(model, ours=False)
    try:
        return call(*args, **kwargs)
    finally:
        _choose(model, ours=True)


def _is_checkpointed(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _mask_for(before: str, mask: Any, dtype: torch.dtype) -> Any:
    """A mask that generation had made by our mask function, as another implementation reads it."""
    if isinstance(mask, dict):  # by the kind of layer
        if any(
            one is None for one in mask.values()
        ):  # nothing is padded: the model makes its masks anew
            return None
        return {kind: _mask_for(before, one, dtype) for kind, one in mask.items()}
    if not isinstance(mask, Mask):
        return mask
    seen = mask.dense()
    if before != "eager":
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


def _asks_for_weights(model: PreTrainedModel, args: tuple[Any, ...], kwargs: Any) -> bool:
    if not args or "output_attentions" in kwargs:
        return bool(kwargs.get("output_attentions"))
    parameters = list(inspect.signature(type(model).forward).parameters)[1:]
    return bool(dict(zip(parameters, args, strict=False)).get("output_attentions"))


def _choose(model: nn.Module, ours: bool) -> None:
    """Have every patched model in `model` use our attention, or what it used before."""
    for _, m in pretrained(model):
        before = getattr(m, _BEFORE, None)
        if before is not None:
            m.config._attn_implementation_internal = NAME if ours else before


def unpatch_attention(model: nn.Module) -> None:
    """Have what was chosen before serve again."""
    for _, m in pretrained(model):
        before = getattr(m, _BEFORE, None)
        if before is not None:
            delattr(m, _BEFORE)
            m.config._attn_implementation_internal = before


def _own_configs(model: nn.Module) -> None:
    """Give the modules configs of their own: one object may serve several models."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PreTrainedConfig):
                setattr(module, name, copy.deepcopy(value, memo))


def _entries(model: nn.Module) -> Iterator[Entry]:
    """The layers that compute attention."""
    for name, module in model.named_modules():
        kind = type(module)
        config = getattr(module, "config", None)
        uses = "ALL_ATTENTION_FUNCTIONS" in getattr(
            getattr(inspect.unwrap(kind.forward), "__code__", None), "co_names", ()
        )
        if uses:
            ours = getattr(config, "_attn_implementation", None) == NAME
            reason = "" if ours else "its model does not let the implementation be chosen"
            if not ours and getattr(config, "output_attentions", False):
                reason = "its configuration asks for attention weights (output_attentions)"
            yield Entry(name, kind.__name__, "attention", ours, reason)
        elif kind.__name__.endswith("Attention") and not any(
            type(m).__name__.endswith("Attention") for m in module.children()
        ):
            reason = "it computes attention itself, not through transformers' interface"
            yield Entry(name, kind.__name__, "attention", False, reason)
