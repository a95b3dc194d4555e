"""Every op in plain PyTorch: its specification, and the backend where no kernel is available.

Each function works for any dtype on any device, is differentiated by autograd and does not check
its arguments: ``llama_fast.ops`` does. 16-bit input is computed in float32. The options of an op
are one NamedTuple, which all of its backends take.
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
