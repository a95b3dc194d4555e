"""Models of transformers: whose attention is ours, instance by instance."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llama_fast.integrations.patch import Entry
from llama_fast.integrations.transformers.attention import NAME

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
        if m._can_set_attn_implementation() and m.config._attn_implementation != NAME:
            setattr(m, _BEFORE, m.config._attn_implementation)
    for m in models:
        if hasattr(m, _BEFORE):
            m.config._attn_implementation_internal = NAME
    return list(_entries(model))


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
            yield Entry(name, kind.__name__, "attention", ours, reason)
        elif kind.__name__.endswith("Attention") and not any(
            type(m).__name__.endswith("Attention") for m in module.children()
        ):
            reason = "it computes attention itself, not through transformers' interface"
            yield Entry(name, kind.__name__, "attention", False, reason)
