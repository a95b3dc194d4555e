"""Marks functions and layers of transformers that a kernel may then replace.

The `kernels` package replaces layers whose class has a mark. transformers marks most norms and the
rotary embedding. It has names for kernels of gated MLPs and of the loss, but no class with these
marks, and none for the norms of Gemma. Here they get marks of our own: with transformers' names,
kernels of others for other devices would be chosen too.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from llama_fast.integrations import structure
from llama_fast.integrations._when_imported import when_any_imported
from llama_fast.integrations.hub_kernels.layers import GATED_PARTS
from llama_fast.integrations.hub_kernels.package import hub_package
from llama_fast.integrations.probe import Probe, normal

# Our marks -> the layers that replace what has them.
LAYERS = {
    "LlamaFastGatedMLP": "GatedMLP",
    "LlamaFastRMSNormZeroCentered": "RMSNormZeroCentered",
    "LlamaFastFixedCrossEntropy": "FixedCrossEntropy",
}
_MLP, _NORM, _LOSS = LAYERS
_MODELS = "transformers.models."
_undo: list[Callable[[], None]] = []


def mark() -> None:
    """Mark layers of the models that are imported and of those that will be, and the loss."""
    if _undo:
        return
    for name, module in list(sys.modules.items()):
        if _has_layers(name):
            _mark_module(module)
    _undo.append(when_any_imported(_has_layers, _mark_module))
    _mark_loss()


def unmark() -> None:
    """Remove the marks."""
    while _undo:
        _undo.pop()()


def _has_layers(name: str) -> bool:
    return name.startswith(_MODELS) and name.rpartition(".")[2].startswith("modeling_")


def _mark_module(module: types.ModuleType) -> None:
    for cls in list(vars(module).values()):
        if not isinstance(cls, type) or not issubclass(cls, nn.Module):
            continue
        read = _names(vars(cls).get("forward"))
        if read not in _KINDS or hasattr(cls, "kernel_layer_name"):
            continue
        hub_package().replace_kernel_forward_from_hub(cls, *_KINDS[read])
        _undo.append(functools.partial(_unmark_class, cls))


def _unmark_class(cls: type) -> None:
    for name in ("kernel_layer_name", "kernel_condition"):
        delattr(cls, name)


def _mark_loss() -> None:
    """Mark the function that ends the losses, where `kernels` finds it in every model.

    Not the losses themselves: Trainer compares the one of a model with `ForCausalLMLoss`.
    """
    from transformers import PreTrainedModel
    from transformers.loss import loss_utils

    theirs = loss_utils.fixed_cross_entropy
    marked = hub_package().use_kernel_forward_from_hub(_LOSS)(theirs)
    loss_utils.fixed_cross_entropy = marked
    PreTrainedModel._kernel_funcs = {_LOSS: marked}

    def undo() -> None:
        loss_utils.fixed_cross_entropy = theirs
        del PreTrainedModel._kernel_funcs

    _undo.append(undo)


def _names(method: Any) -> frozenset[str]:
    """The names that a method of (self, x) reads; none for others."""
    code = getattr(method, "__code__", None)
    return frozenset(code.co_names if code is not None and code.co_argcount == 2 else ())


def _gated_mlp(module: nn.Module) -> Any:
    """The module's class if it computes what our layer does, with any activation; else None."""

    def formula(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        return structure.gated_mlp(mlp, x, **GATED_PARTS, product=lambda a, b: mlp.act_fn(a) * b)

    try:
        x = normal(7, module.gate_proj.in_features)
        probe = Probe(module, x, excluded=tuple(GATED_PARTS.values()))
        return type(module) if all(probe.agrees(formula, t) for t in (False, True)) else None
    except Exception:  # whatever the module raises for this input
        return None


def _is_gated_mlp(module: nn.Module) -> bool:
    return _mlp_of(module) is not None


def _is_zero_centered(module: nn.Module) -> bool:
    """Whether a module is an RMSNorm with the factor 1 + weight."""
    found: Any = _norm_of(module)
    return callable(found) and found.keywords["_ours"].keywords["offset"] == 1


_mlp_of = structure.cached_by_structure(_gated_mlp)
_norm_of = structure.cached_by_structure(structure.norm_replacement)


# What the forward of a class reads -> its mark, and what an instance must be.
_KINDS: dict[frozenset[str], tuple[str, Callable[[Any], bool]]] = {
    frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"}): (_MLP, _is_gated_mlp),
    frozenset({"_norm", "float", "weight", "type_as"}): (_NORM, _is_zero_centered),
}
