"""The gated activation of Llama's feed-forward layer: silu(gate) * up, silu(x) = x / (1 + e^-x).

Shazeer 2020, "GLU Variants Improve Transformer" (arXiv:2002.05202).
"""

import torch

from llama_fast._torch_internals import in_forward_ad

from ._dtypes import compute_dtype


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of two tensors of one shape, computed in float32 and rounded once."""
    wide = compute_dtype(gate)
    x = gate.to(wide)
    # torch's silu is correct at -inf, where the product is NaN, but its gradient has no
    # forward-mode derivative.
    silu = x * torch.sigmoid(x) if in_forward_ad() else torch.nn.functional.silu(x)
    return (silu * up.to(wide)).to(gate.dtype)
