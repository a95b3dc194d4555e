"""Put the kernels into a model, and take them out again.

A module of the model gets a `forward` of its own as an attribute of the instance, beside its class
and in front of it: parameters, state dict, hooks, class and every other model stay as they are, and
taking the attribute away leaves nothing behind.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from torch import nn

from llama_fast.integrations import bystanders, forward, heads, rotary, structure, torch_modules
from llama_fast.integrations.report import Entry, Report


def patch(
    model: nn.Module,
    *,
    attention: bool = True,
    loss: bool = True,
    rms_norm: bool = True,
    rope: bool = True,
    mlp: bool = True,
    linear: bool = True,
) -> Report:
    """Put the fused kernels into a model, in place; :func:`unpatch` takes them out.

    Any `torch.nn.Module`: models of transformers, alone or within others, and torch's own attention
    and transformer layers, RMSNorm and CrossEntropyLoss. Modules are recognised by what they
    compute and compared with our formula on random input, in evaluation and in training, before
    they are replaced. One that is changed afterwards, by another activation, hooks or adapters, or
    that is given a tensor subclass as DTensor, runs its own forward. Calls with
    ``output_attentions=True`` run on the attention from before (in training with activation
    checkpointing they are refused). A model that was patched before is patched anew.

    Args:
        model: the model; any device and dtype.
        attention: attention layers.
        loss: cross-entropy; in a language model of transformers, in training with `labels`, it is
            made without the logits. These are computed when somebody looks, with the values of the
            forward pass; where they are gone, as when the optimizer has stepped and there was
            another forward pass, a look is a RuntimeError that says so.
        rms_norm: RMSNorm.
        rope: rotary positions of queries and keys.
        mlp: gated MLPs with SiLU.
        linear: linear maps, which decoding on a CPU then does at the speed of memory; all else is
            torch's.

    Returns:
        A :class:`Report`, to print, or to use as ``with llama_fast.patch(model):``.

    Raises:
        TypeError: `model` is no module, or an option no bool.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    options = {
        "attention": attention,
        "loss": loss,
        "rms_norm": rms_norm,
        "rope": rope,
        "mlp": mlp,
        "linear": linear,
    }
    for name, value in options.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {value!r}")
    unpatch(model)
    report = Report(model, undo=unpatch)
    simple: list[tuple[str, Callable[[nn.Module], structure.Replacement]]] = []
    if rms_norm:
        simple.append(("rms_norm", structure.once(structure.norm_replacement)))
    if linear:
        simple.append(("linear", structure.linear_replacement))
    if mlp:
        simple.append(("mlp", structure.once(structure.mlp_replacement)))
    for name, module in model.named_modules():
        for part, find in simple:
            _apply(report, name, module, part, _of_kind(find, module))
        if options.get(torch_modules.part_of(module) or ""):
            _apply(report, name, module, "torch", _of_kind(torch_modules.replacement, module))
    bystanders.watch(model)
    if rope:
        _patch_rope(report, model)
    if "transformers" in sys.modules:  # a model of theirs cannot be here otherwise
        from llama_fast.integrations.transformers import models

        if attention:
            report.entries += models.patch_attention(model)
        if loss:
            for name, module in models.pretrained(model):
                _patch_loss(report, name, module)
        if attention:
            for _, module in models.pretrained(model):
                models.return_weights(module)
    return report


def unpatch(model: nn.Module) -> None:
    """Take out all that :func:`patch` put into a model; nothing happens to one without.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        vars(module).pop(heads.FLAG, None)
        forward.restore(module)
    if "transformers" in sys.modules:
        from llama_fast.integrations.transformers import models

        models.unpatch_attention(model)


def _of_kind(
    find: Callable[[nn.Module], structure.Replacement], module: nn.Module
) -> structure.Replacement:
    if "forward" in vars(module):  # hooks of other libraries; what they do is not known
        return None
    return find(module)


def _apply(
    report: Report, name: str, module: nn.Module, part: str, found: structure.Replacement
) -> None:
    """Replace a module's forward by what was found for it, and write it down."""
    if found is None:
        return
    if not isinstance(found, str):
        forward.replace(module, found)
    reason = found if isinstance(found, str) else ""
    report.entries.append(Entry(name, type(module).__name__, part, not reason, reason))


def _patch_rope(report: Report, model: nn.Module) -> None:
    tables = [
        m
        for m in model.modules()
        if any("inv_freq" in n for n, _ in m.named_buffers(recurse=False))
    ]
    for name, module in model.named_modules():
        found = rotary.rotation_of(module)
        if found is None:
            continue
        if isinstance(found, str):
            _apply(report, name, module, "rope", found)
            continue
        function, style = found
        if not tables or not all(rotary.tables_fit(m, style) for m in tables):
            _apply(report, name, module, "rope", "its tables of angles are of another kind")
        elif "forward" in vars(module):
            _apply(report, name, module, "rope", "something else has replaced its forward")
        else:
            rotary.rewired(type(module).forward, *found)  # torch.compile cannot make functions
            ours = functools.partial(rotary.attention_forward, _name=function, _style=style)
            _apply(report, name, module, "rope", ours)


def _patch_loss(report: Report, name: str, model: nn.Module) -> None:
    head = heads.head_of(model)
    if isinstance(head, str):
        if "labels" not in head:  # a part of a model has no loss
            _apply(report, name, model, "loss", head)
        return
    before = vars(model).get("forward")
    forward.replace(head, heads.head_forward)
    setattr(head, heads.FLAG, False)
    _apply(
        report,
        name,
        model,
        "loss",
        functools.partial(
            heads.model_forward,
            _head=next(n for n, m in model.named_modules() if m is head),
            _before=before,
            _traced=heads.can_be_traced(model),
        ),
    )
