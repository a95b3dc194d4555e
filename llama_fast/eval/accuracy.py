"""Next-token accuracy."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def next_token_accuracy(
    model: nn.Module, dataloader: Iterable[tuple[Tensor, Tensor]], *, ignore_index: int = -100
) -> float:
    """The share of targets to which the model assigns the highest probability of all tokens.

    Args:
        model: a module from tokens (B,S) to logits (B,S,V), such as ``LLaMA``. It is set to
            evaluation mode, and its mode is restored at the end.
        dataloader: yields pairs of tokens (B,S) and targets (B,S), int64; ``targets[b, s]`` is the
            token that follows ``tokens[b, s]``.
        ignore_index: targets with this value are not counted.

    Returns:
        The accuracy in [0, 1], or NaN if no target is counted.

    Raises:
        ValueError: the shape of the targets is not that of the tokens.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    correct = total = 0
    try:
        with torch.no_grad():
            for tokens, targets in dataloader:
                best = model(tokens.to(device)).argmax(dim=-1)  # (B,S)
                targets = targets.to(device)
                if targets.shape != best.shape:
                    raise ValueError(
                        f"targets: expected the shape of the tokens, {tuple(best.shape)}, got "
                        f"{tuple(targets.shape)}"
                    )
                counts = targets != ignore_index
                correct += int(((best == targets) & counts).sum())
                total += int(counts.sum())
    finally:
        model.train(was_training)
    return correct / total if total else float("nan")
