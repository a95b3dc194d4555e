"""Activation checkpointing: the backward pass recomputes activations instead of storing them.

Chen et al. 2016 (arXiv:1604.06174); storing only what is expensive to recompute: Korthikanti et al.
2022 (arXiv:2205.05198).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llama_fast.models import LLaMA

# Expensive operators: matrix products (also under autocast and with a bias) and attention, whose
# backward pass needs its outputs. Norms, rotations, SwiGLU, sums and casts are cheap.
_SAVED = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.linear.", "llama_fast.attention.")


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_saved = str(operator).startswith(_SAVED)
    return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(model: LLaMA, mode: str) -> None:
    """Set which activations `model` stores; results are bitwise equal in every mode.

    Args:
        model: the model, which is changed in place.
        mode: what is stored. "none": everything (no checkpointing); "selective": the outputs of
            matrix products and attention; "full": only the input of each block, which adds a third
            to the arithmetic.
    """
    if mode == "none":
        model.run_block = None
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def run(block: Any, x: torch.Tensor, context: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            out: torch.Tensor = block(x, context)
            return out
        out = checkpoint(block, x, context, **options)
        return out

    model.run_block = run
