"""The mathematics of every op in plain PyTorch: the specification, and the last-resort backend.

Each function takes the keyword arguments of the public op of the same name (``attention`` also
``dropout_seed``, ``attention_decode`` also ``attend``), works for any dtype on any device, is
differentiated by autograd and checks nothing: the checks live in ``llama_fast.ops``. 16-bit input
is computed in float32.
"""

from .attention import attention
from .attention_decode import attention_decode
from .cross_entropy import Stats, cross_entropy
from .linear_cross_entropy import linear_cross_entropy
from .rms_norm import rms_norm
from .rope import rope
from .swiglu import swiglu

__all__ = [
    "Stats",
    "attention",
    "attention_decode",
    "cross_entropy",
    "linear_cross_entropy",
    "rms_norm",
    "rope",
    "swiglu",
]
