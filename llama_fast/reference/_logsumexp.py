"""log(sum(exp(z))) with a right gradient where z is as large as numbers get."""

from __future__ import annotations

import torch


def logsumexp(z: torch.Tensor) -> torch.Tensor:
    """As `torch.logsumexp(z, dim=-1)`, but its gradient is always the softmax.

    torch's is exp(z - result), where log(number of terms) is lost in a result near the lowest
    finite number: 1 for each of the terms.
    """
    if z.shape[-1] == 0:
        return torch.logsumexp(z, dim=-1)
    largest = z.detach().amax(dim=-1, keepdim=True)
    largest = largest.masked_fill(largest.isinf(), 0)
    return (z - largest).exp().sum(dim=-1).log() + largest.squeeze(-1)
