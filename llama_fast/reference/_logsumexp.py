"""log(sum(exp(z))) with a correct gradient for z near the limits of its dtype."""

from __future__ import annotations

import torch


def logsumexp(z: torch.Tensor) -> torch.Tensor:
    """As `torch.logsumexp(z, dim=-1)`, but its gradient is always the softmax.

    The gradient of torch's function is exp(z - result). If all n terms are near the lowest finite
    number, log(n) is lost to rounding in the result, and that gradient is 1 for each term.
    """
    if z.shape[-1] == 0:
        return torch.logsumexp(z, dim=-1)
    largest = z.detach().amax(dim=-1, keepdim=True)
    largest = largest.masked_fill(largest.isinf(), 0)
    return (z - largest).exp().sum(dim=-1).log() + largest.squeeze(-1)
