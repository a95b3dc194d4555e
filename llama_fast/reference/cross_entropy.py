"""Softmax cross-entropy as mathematics.

For one token with logits x over V classes, class weights w and label smoothing e:

    z   = x                                       or  softcap * tanh(x / softcap)
    lse = log(sum_c exp(z_c))
    CE  = -(1 - e) w_y (z_y - lse) - (e / V) sum_c w_c (z_c - lse)          class index y
    CE  = -sum_c w_c t_c (z_c - lse),    t = (1 - e) target + e / V         class probabilities
    loss = CE + z_loss * lse^2

Label smoothing: Szegedy et al. 2015 (arXiv:1512.00567); z-loss: PaLM (arXiv:2204.02311).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ._dtypes import compute_dtype
from ._logsumexp import logsumexp

# The reductions, indexed by the number that the operators take; must agree with `Reduction` in
# csrc/cpu/cross_entropy.h.
REDUCTIONS = ("none", "mean", "sum")
NONE, MEAN, SUM = range(3)


class CrossEntropyOptions(NamedTuple):
    """The options of cross_entropy and linear_cross_entropy, in the order of their operators.

    An operator is called as ``cross_entropy(input, target, *options, stats)``.

    Attributes:
        weight: (V,), a factor for each class, or None.
        ignore_index: the target of tokens that are left out.
        reduction: NONE, MEAN or SUM.
        label_smoothing: e, in [0, 1].
        softcap: bound of the logits, 0 for none.
        z_loss: factor of lse^2.
    """

    weight: torch.Tensor | None = None
    ignore_index: int = -100
    reduction: int = MEAN
    label_smoothing: float = 0.0
    softcap: float = 0.0
    z_loss: float = 0.0

    @classmethod
    def split(cls, arguments: Sequence[Any]) -> tuple[CrossEntropyOptions, Sequence[Any]]:
        """Split the flat arguments of an operator into (options, remaining arguments)."""
        count = len(cls._fields)
        return cls(*arguments[:count]), arguments[count:]


class Stats(NamedTuple):
    """Statistics of the forward pass; only lse is differentiable.

    Attributes:
        lse: log-sum-exp of each token's (softcapped) logits, float32 (float64 for float64 input).
        argmax: int64, the class with the largest logit of each token.
        correct: bool, argmax == target; False for ignored tokens.
        z_loss: the z-loss part of the loss, reduced like the loss.
    """

    lse: torch.Tensor
    argmax: torch.Tensor
    correct: torch.Tensor
    z_loss: torch.Tensor


def class_dim(input: torch.Tensor) -> int:
    """The class dimension of logits (V,), (N,V) or (N,V,d1,...)."""
    return 0 if input.dim() == 1 else 1


def token_shape(input: torch.Tensor) -> torch.Size:
    """The shape of logits without the class dimension."""
    shape = input.shape
    return shape[:1] + shape[2:] if len(shape) > 1 else shape[:0]


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    options: CrossEntropyOptions,
    *,
    return_stats: bool = False,
) -> Any:
    """Cross-entropy of logits (V,), (N,V) or (N,V,d1,...); see ``llama_fast.cross_entropy``.

    Returns:
        The loss; with `return_stats` (loss, `Stats`).
    """
    weight, ignore_index, reduction, label_smoothing, softcap, z_loss = options
    dim = class_dim(input)
    x = input.movedim(dim, -1).to(compute_dtype(input))
    V = x.shape[-1]
    z = softcap * torch.tanh(x / softcap) if softcap else x
    lse = logsumexp(z)
    log_p = torch.log_softmax(z, dim=-1)
    w = torch.ones(V, dtype=x.dtype, device=x.device) if weight is None else weight.to(x.dtype)

    if target.is_floating_point():
        target = target.movedim(dim, -1).to(x.dtype)
        label = target.argmax(dim=-1) if V else target.new_zeros(target.shape[:-1]).long()
        smoothed = target * (1 - label_smoothing) + label_smoothing / V
        ce = -(w * smoothed * log_p).sum(dim=-1)
        kept = torch.ones_like(ce, dtype=torch.bool)
        denominator = torch.ones_like(ce)  # torch averages over tokens, whatever their weights
    else:
        kept = target != ignore_index
        label = target.long().masked_fill(~kept, 0)
        w_label = w.gather(0, label.flatten()).view(label.shape)  # w[label], but supports vmap
        ce = -w_label * log_p.gather(-1, label.unsqueeze(-1)).squeeze(-1)
        if label_smoothing > 0:
            everywhere = -(w * log_p).sum(dim=-1)
            ce = (1 - label_smoothing) * ce + (label_smoothing / V) * everywhere
        ce = ce.masked_fill(~kept, 0)
        denominator = w_label.masked_fill(~kept, 0)
    z_term = (z_loss * lse**2).masked_fill(~kept, 0) if z_loss else torch.zeros_like(ce)

    if reduction == MEAN:
        ce, z_term = ce.sum() / denominator.sum(), z_term.sum() / kept.sum()
    elif reduction == SUM:
        ce, z_term = ce.sum(), z_term.sum()
    # Without z-loss nothing is added: 0 / 0 or 0 * inf would change the loss.
    loss = ce + z_term if z_loss else ce
    if not return_stats:
        return loss
    argmax = x.detach().argmax(dim=-1)
    stats = Stats(lse, argmax, (argmax == label) & kept, z_term.detach())
    return loss, stats
