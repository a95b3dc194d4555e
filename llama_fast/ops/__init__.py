"""The public ops: each checks its arguments, picks a backend and defines its derivatives."""

from llama_fast.ops._output_cache import empty_cache
from llama_fast.ops.attention import attention
from llama_fast.ops.attention_decode import attention_decode
from llama_fast.ops.backends.choice import Backends, backends, use_backend
from llama_fast.ops.cross_entropy import cross_entropy
from llama_fast.ops.linear_cross_entropy import linear_cross_entropy
from llama_fast.ops.ring_attention import Ring, ring_attention
from llama_fast.ops.rms_norm import rms_norm
from llama_fast.ops.rope import rope
from llama_fast.ops.scaled_dot_product_attention import scaled_dot_product_attention
from llama_fast.ops.swiglu import swiglu

__all__ = [
    "Backends",
    "Ring",
    "attention",
    "attention_decode",
    "backends",
    "cross_entropy",
    "empty_cache",
    "linear_cross_entropy",
    "ring_attention",
    "rms_norm",
    "rope",
    "scaled_dot_product_attention",
    "swiglu",
    "use_backend",
]
