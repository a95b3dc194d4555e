"""The mathematics of every op in plain PyTorch: the specification, and the last-resort backend.

Each function works for any dtype on any device, is differentiated by autograd and checks nothing:
the checks live in ``llama_fast.ops``. 16-bit input is computed in float32. An op with many options
takes them as one NamedTuple, which every backend of it takes.
"""

from .attention import AttentionOptions, attention
from .attention_decode import AttentionDecodeOptions, attention_decode
from .cross_entropy import CrossEntropyOptions, Stats, cross_entropy
from .linear_cross_entropy import linear_cross_entropy
from .rms_norm import rms_norm
from .rope import rope
from .swiglu import swiglu

__all__ = [
    "AttentionDecodeOptions",
    "AttentionOptions",
    "CrossEntropyOptions",
    "Stats",
    "attention",
    "attention_decode",
    "cross_entropy",
    "linear_cross_entropy",
    "rms_norm",
    "rope",
    "swiglu",
]
