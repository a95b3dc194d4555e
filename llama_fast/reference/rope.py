"""Rotary position embedding as mathematics.

A pair (a, b) of a head's elements at position s is rotated by s times the frequency of the pair:

    a' = a cos - b sin        b' = b cos + a sin

Su et al. 2021 (arXiv:2104.09864). Pairs are (d, d + D/2), as in Hugging Face
checkpoints, or (2d, 2d + 1) when interleaved, as in Meta's checkpoints and the paper.
"""

import torch
from torch import Tensor

from ._dtypes import compute_dtype


def rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate q (B,H,S,D) and k (B,K,S,D) by cos, sin (S,D/2) or (B,S,D/2)."""
    return rotate(q, cos, sin, interleaved), rotate(k, cos, sin, interleaved)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate one tensor (B,heads,S,D)."""
    wide = x.to(compute_dtype(x))
    cos, sin = (table.to(wide.dtype) for table in (cos, sin))
    if cos.dim() == 3:  # one table per sequence, the same for every head
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = wide.chunk(2, dim=-1)
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return rotated.to(x.dtype)
