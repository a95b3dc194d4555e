"""Linear projection onto the vocabulary followed by softmax cross-entropy, as mathematics.

    logits = input @ linear_weight.T + linear_bias       loss = cross_entropy(logits, target)

The fused form, which never stores all logits: Wijmans et al. 2024, "Cut Your Losses in
Large-Vocabulary Language Models" (arXiv:2411.09009).
"""

from __future__ import annotations

from typing import Any

import torch

from ._dtypes import compute_dtype
from .cross_entropy import NONE, CrossEntropyOptions, Stats, cross_entropy


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None,
    options: CrossEntropyOptions,
    *,
    process_group: torch.distributed.ProcessGroup | None = None,
    return_stats: bool = False,
) -> Any:
    """Cross-entropy of a linear head; see ``llama_fast.linear_cross_entropy``.

    input (...,E), linear_weight (V,E), target (...). All logits are in memory at once. With
    ``process_group`` every rank gathers the whole weight.

    Returns:
        The loss; with `return_stats` (loss, `Stats`).
    """
    dtype = compute_dtype(input)
    if process_group is not None:
        linear_weight = gather_rows(linear_weight, process_group)
        if linear_bias is not None:
            linear_bias = gather_rows(linear_bias, process_group)
    rows = input.reshape(target.numel(), input.shape[-1])
    logits = rows.to(dtype) @ linear_weight.to(dtype).T
    if linear_bias is not None:
        logits = logits + linear_bias.to(dtype)
    result = cross_entropy(logits, target.flatten(), options, return_stats=return_stats)
    loss, stats = result if return_stats else (result, None)
    if options.reduction == NONE:
        loss = loss.view(target.shape)
    if stats is None:
        return loss
    lse, argmax, correct, z_part = (x.view(target.shape) if x.dim() else x for x in stats)
    # The kernels compute no logits for ignored tokens, so their statistics are constants.
    ignored = target == options.ignore_index
    lse, argmax = lse.masked_fill(ignored, 0), argmax.masked_fill(ignored, -1)
    return loss, Stats(lse, argmax, correct, z_part)


def gather_rows(shard: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """Stack the rows of every rank; gradients reach this rank's own rows only."""
    shards = [torch.empty_like(shard) for _ in range(group.size())]
    torch.distributed.all_gather(shards, shard.detach().contiguous(), group=group)
    shards[group.rank()] = shard
    return torch.cat(shards)
