"""Replaces parts of a model by the fused kernels, and restores them.

A replaced module gets a `forward` as an attribute of the instance, which takes precedence over its
class. Parameters, state dict, hooks, class and all other models are unchanged, and deleting the
attribute restores the module.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from torch import nn

from llama_fast.integrations import (
    forward,
    heads,
    rotary,
    structure,
    torch_modules,
    untracked_writes,
)
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
    """Replace parts of a model by the fused kernels, in place; :func:`unpatch` restores them.

    `model` may be any `torch.nn.Module` that contains a transformers model or torch's own attention
    and transformer layers, RMSNorm or CrossEntropyLoss. Modules are recognised by what they
    compute: before a module is replaced, its output is compared with our formula on random input,
    in evaluation and training mode. A replaced module runs its own forward again if it is changed
    later (another activation, hooks, adapters) or receives a tensor subclass such as DTensor.
    Calls with ``output_attentions=True`` run the attention that the model had before; in training
    with activation checkpointing they raise an error. Patching a patched model replaces the earlier
    patch.

    Args:
        model: the model, on any device and in any dtype.
        attention: whether to replace attention layers.
        loss: whether to replace the cross-entropy. A causal language model of transformers that is
            trained with `labels` then computes the loss without the logits. If they are accessed,
            they are computed from the hidden states and weights of the forward pass. If these no
            longer exist (the optimizer has stepped and another forward pass has run), the access
            raises a RuntimeError.
        rms_norm: whether to replace RMSNorm.
        rope: whether to replace the rotary embedding of queries and keys.
        mlp: whether to replace gated MLPs with SiLU.
        linear: whether to replace linear layers in decoding on a CPU, where the kernel reads the
            weights at memory bandwidth. All other products are torch's.

    Returns:
        A :class:`Report`, which prints as a table. ``with llama_fast.patch(model):`` restores the
        model at the end of the block.

    Raises:
        TypeError: `model` is not a module, or an option is not a bool.
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
        simple.append(("rms_norm", structure.cached_by_structure(structure.norm_replacement)))
    if linear:
        simple.append(("linear", structure.linear_replacement))
    if mlp:
        simple.append(("mlp", structure.cached_by_structure(structure.mlp_replacement)))
    for name, module in model.named_modules():
        for part, find in simple:
            _apply(report, name, module, part, _find_replacement(find, module))
        if options.get(torch_modules.part_of(module) or ""):
            _apply(
                report, name, module, "torch", _find_replacement(torch_modules.replacement, module)
            )
    untracked_writes.register_model(model)
    if rope:
        _patch_rope(report, model)
    if "transformers" in sys.modules:  # otherwise there is no model of transformers
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
    """Undo :func:`patch`; a model that is not patched stays as it is.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        vars(module).pop(heads.FLAG, None)
        forward.restore(module)
    if "transformers" in sys.modules:
        from llama_fast.integrations.transformers import models

        models.unpatch_attention(model)


def _find_replacement(
    find: Callable[[nn.Module], structure.Replacement], module: nn.Module
) -> structure.Replacement:
    if forward.is_foreign(module):  # with unknown effect
        return None
    return find(module)


def _apply(
    report: Report, name: str, module: nn.Module, part: str, result: structure.Replacement
) -> None:
    """Replace a module's forward, unless `result` is a reason not to, and add a report entry."""
    if result is None:
        return
    if not isinstance(result, str):
        forward.replace(module, result)
    reason = result if isinstance(result, str) else ""
    report.entries.append(Entry(name, type(module).__name__, part, not reason, reason))


def _patch_rope(report: Report, model: nn.Module) -> None:
    tables = [
        m
        for m in model.modules()
        if any("inv_freq" in n for n, _ in m.named_buffers(recurse=False))
    ]
    for name, module in model.named_modules():
        result = rotary.rotation_of(module)
        if result is None:
            continue
        if isinstance(result, str):
            _apply(report, name, module, "rope", result)
            continue
        function, style = result
        if not tables or not all(rotary.tables_fit(m, style) for m in tables):
            _apply(report, name, module, "rope", "its cosine and sine tables have another layout")
        elif forward.is_foreign(module):
            _apply(report, name, module, "rope", "something else has replaced its forward")
        else:
            rotary.with_our_rotation(
                type(module).forward, *result
            )  # torch.compile cannot create functions
            ours = functools.partial(rotary.attention_forward, _name=function, _style=style)
            _apply(report, name, module, "rope", ours)


def _patch_loss(report: Report, name: str, model: nn.Module) -> None:
    head = heads.head_of(model)
    if isinstance(head, str):
        if "labels" not in head:  # parts of a model compute no loss
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
