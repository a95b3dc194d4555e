"""Softmax cross-entropy as mathematics.

For one token with logits x over V classes, class weights w and label smoothing e:

    z   = x                                       or  softcap * tanh(x / softcap)
    lse = log(sum_c exp(z_c))
    CE  = -(1 - e) w_y (z_y - lse) - (e / V) sum_c w_c (z_c - lse)          class index y
    CE  = -sum_c w_c t_c (z_c - lse),    t = (1 - e) target + e / V         class probabilities
    loss = CE + z_loss * lse^2

Label smoothing: Szegedy et al. 2015 (arXiv:1512.00567); z-loss: PaLM (arXiv:2204.02311).
"""

from typing import NamedTuple

import torch

from ._dtypes import compute_dtype
from ._logsumexp import logsumexp


class Stats(NamedTuple):
    """What the forward pass knows besides the loss; of this only lse is differentiable.

    lse: log-sum-exp of each token's (softcapped) logits, float32 (float64 for float64 input).
    argmax: int64, the class with the largest logit.
    correct: bool, argmax == target; False where the target is ignored.
    z_loss: the z-loss part of the loss, reduced as the loss is.
    """

    lse: torch.Tensor
    argmax: torch.Tensor
    correct: torch.Tensor
    z_loss: torch.Tensor


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    inplace: bool = False,
    return_stats: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, Stats]:
    """Cross-entropy of logits (V,), (N,V) or (N,V,d1,...); see ``llama_fast.cross_entropy``.

    ``inplace`` is a permission, of which this implementation makes no use.
    """
    class_dim = 0 if input.dim() == 1 else 1
    x = input.movedim(class_dim, -1).to(compute_dtype(input))
    V = x.shape[-1]
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    lse = logsumexp(z)
    log_p = torch.log_softmax(z, dim=-1)
    w = torch.ones(V, dtype=x.dtype, device=x.device) if weight is None else weight.to(x.dtype)

    if target.is_floating_point():
        target = target.movedim(class_dim, -1).to(x.dtype)
        label = target.argmax(dim=-1) if V else target.new_zeros(target.shape[:-1]).long()
        smoothed = target * (1 - label_smoothing) + label_smoothing / V
        ce = -(w * smoothed * log_p).sum(dim=-1)
        kept = torch.ones_like(ce, dtype=torch.bool)
        denominator = torch.ones_like(ce)  # torch averages over tokens, whatever their weights
    else:
        kept = target != ignore_index
        label = target.long().masked_fill(~kept, 0)
        w_label = w.gather(0, label.flatten()).view(label.shape)  # w[label], known to vmap
        ce = -w_label * log_p.gather(-1, label.unsqueeze(-1)).squeeze(-1)
        if label_smoothing > 0:
            everywhere = -(w * log_p).sum(dim=-1)
            ce = (1 - label_smoothing) * ce + (label_smoothing / V) * everywhere
        ce = ce.masked_fill(~kept, 0)
        denominator = w_label.masked_fill(~kept, 0)
    z_term = (z_loss * lse**2).masked_fill(~kept, 0) if z_loss else torch.zeros_like(ce)

    if reduction == "mean":
        ce, z_term = ce.sum() / denominator.sum(), z_term.sum() / kept.sum()
    elif reduction == "sum":
        ce, z_term = ce.sum(), z_term.sum()
    # Adding an absent term would turn "all ignored" or an infinite loss into something else.
    loss = ce + z_term if z_loss else ce
    if not return_stats:
        return loss
    argmax = x.detach().argmax(dim=-1)
    stats = Stats(lse, argmax, (argmax == label) & kept, z_term.detach())
    return loss, stats
