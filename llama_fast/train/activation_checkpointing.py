"""Less memory for activations: the backward pass computes some of them again.

Chen et al. 2016 (arXiv:1604.06174); that what is costly is kept and what is cheap is not:
Korthikanti et al. 2022 (arXiv:2205.05198).
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

# Costly: products (under autocast and with a bias too) and attention, whose backward needs what
# it has made. Norms, rotations, SwiGLU, sums and casts are read and written in no time.
_KEPT = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.linear.", "llama_fast.attention.")


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = str(operator).startswith(_KEPT)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_activations(model: LLaMA, mode: str) -> None:
    """Let `model` keep less between its forward and backward pass. The results are the same bits.

    Args:
        mode: "none" keeps everything; "selective" products and attention; "full" only the input
            of each block, which costs a third more arithmetic.
    """
    if mode == "none":
        model.run_block = None
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def run(block: Any, x: torch.Tensor, context: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            found: torch.Tensor = block(x, context)
            return found
        out: torch.Tensor = checkpoint(block, x, context, **options)
        return out

    model.run_block = run
