"""Registers our kernels with the Hub's `kernels` package, and takes them out again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from llama_fast.integrations import forward
from llama_fast.integrations.hub_kernels import slots
from llama_fast.integrations.hub_kernels.package import hub_package

# `attn_implementation` of our attention by way of `kernels`.
ATTENTION = "llama-fast/llama-fast-layers"
KERNEL = Path(__file__).parent / "kernel"
_LOCAL = "LOCAL_KERNELS"  # variable that `kernels` reads: repository=path, separated by ":"
# transformers' names -> our layers.
_LAYERS = {
    "RMSNorm": "RMSNorm",
    "RMSNormZeroCentered": "RMSNormZeroCentered",
    "rotary_pos_emb": "RotaryPosEmb",
    "SwiGLUMLP": "SwiGLUMLP",
    "GeGLUMLP": "GeGLUMLP",
    "ForCausalLMLoss": "ForCausalLMLoss",
    **slots.LAYERS,
}


def kernel_mapping() -> dict[str, Any]:
    """The layers that our kernels can replace on a CPU, for `kernels.use_kernel_mapping`.

    Returns:
        Names of layers to kernels, for inference and training, compiled or not.

    Raises:
        ImportError: `kernels` is not installed, or transformers does not accept its version.
    """
    kernels = hub_package()
    mode = kernels.Mode
    modes = (mode.INFERENCE | mode.TORCH_COMPILE, mode.TRAINING | mode.TORCH_COMPILE)
    mapping = {}
    for name, layer in _LAYERS.items():
        repository = kernels.LocalLayerRepository(KERNEL, layer_name=layer)
        mapping[name] = {"cpu": dict.fromkeys(modes, repository)}
    return mapping


def register_kernels() -> None:
    """Offer our kernels to models of transformers on a CPU that are loaded with `use_kernels=True`.

    A model then gets our RMSNorm, rotary embedding, gated MLP and loss of logits where transformers
    marked its layers for kernels, or this function did. With
    ``attn_implementation="llama-fast/llama-fast-layers"`` it also gets our attention. A call that a
    kernel cannot take runs transformers' code. Layers are replaced when the model is loaded, by
    ``model.set_use_kernels(True)``, and when `train()` and `eval()` switch.

    transformers shares the rotary embedding and the loss between all models of an architecture, so
    the model that was loaded last decides about them.

    Raises:
        ImportError: `kernels` is not installed, or transformers does not accept its version.
        ValueError: the path of this package contains a colon, which `kernels` cannot read.

    Example:
        >>> llama_fast.integrations.register_kernels()
        >>> model = AutoModelForCausalLM.from_pretrained(
        ...     "HuggingFaceTB/SmolLM2-135M",
        ...     use_kernels=True,
        ...     attn_implementation="llama-fast/llama-fast-layers",
        ... )
    """
    kernels = hub_package()
    if ":" in str(KERNEL):
        raise ValueError(f"llama_fast: expected a path without a colon, got {KERNEL}")
    kernels.register_kernel_mapping(kernel_mapping())
    slots.mark()
    os.environ[_LOCAL] = ":".join([*_other_kernels(), f"{ATTENTION}={KERNEL}"])


def unregister_kernels(*models: nn.Module) -> None:
    """Undo :func:`register_kernels`, and give models back the forwards of their classes.

    Args:
        *models: models that run our kernels. Their attention implementation stays as it is.

    Raises:
        TypeError: an argument is not a module.
    """
    for model in models:
        if not isinstance(model, nn.Module):
            raise TypeError(f"models: expected torch.nn.Modules, got {type(model).__name__}")
    for model in models:
        for module in model.modules():
            for each in (module, *getattr(module, "_kernel_funcs", {}).values()):
                if forward.is_kernel(each):
                    del each.forward
    slots.unmark()
    others = _other_kernels()
    if others:
        os.environ[_LOCAL] = ":".join(others)
    else:
        os.environ.pop(_LOCAL, None)
    try:
        kernels = hub_package()
    except ImportError:
        return  # nothing can have been registered
    kernels.register_kernel_mapping({name: {"cpu": {}} for name in _LAYERS})


def _other_kernels() -> list[str]:
    """The entries of LOCAL_KERNELS that are not ours."""
    entries = os.environ.get(_LOCAL, "").split(":")
    return [entry for entry in entries if entry and entry.partition("=")[0] != ATTENTION]
