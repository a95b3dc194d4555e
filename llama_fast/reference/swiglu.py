"""The gated activation of Llama's feed-forward layer: silu(gate) * up, silu(x) = x / (1 + e^-x).

Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202).
"""

import torch

from ._dtypes import compute_dtype


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of two tensors of one shape, in float32, rounded once at the end."""
    wide = compute_dtype(gate)
    return (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)
