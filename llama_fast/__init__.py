"""llama_fast: fused attention and cross-entropy for Llama-style models, on CPUs and GPUs.

The ops are functions with the signatures of `torch.nn.functional` plus keyword-only extras;
on top of them stand a Llama model, its checkpoints, training and evaluation.

    import llama_fast
    out = llama_fast.attention(q, k, v, causal=True)
    loss = llama_fast.linear_cross_entropy(hidden, head_weight, targets)
"""

from typing import Any

from llama_fast import generate, models, nn
from llama_fast._version import __version__
from llama_fast.eval import evaluate
from llama_fast.integrations import patch, unpatch
from llama_fast.integrations.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from llama_fast.models import LLaMA
from llama_fast.ops import (
    attention,
    attention_decode,
    backends,
    cross_entropy,
    empty_cache,
    linear_cross_entropy,
    rms_norm,
    rope,
    scaled_dot_product_attention,
    swiglu,
    use_backend,
)
from llama_fast.ops.torch_functions import accelerate
from llama_fast.train import Trainer

__all__ = [
    "AutoModelForCausalLM",
    "LLaMA",
    "PatchCallback",
    "Trainer",
    "__version__",
    "accelerate",
    "attention",
    "attention_decode",
    "backends",
    "cross_entropy",
    "empty_cache",
    "evaluate",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "generate",
    "linear_cross_entropy",
    "models",
    "nn",
    "patch",
    "rms_norm",
    "rope",
    "scaled_dot_product_attention",
    "swiglu",
    "unpatch",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    # Needs transformers, which takes seconds to import and is not among the requirements.
    if name == "AutoModelForCausalLM":
        from llama_fast.integrations.transformers.auto import AutoModelForCausalLM

        return AutoModelForCausalLM
    if name == "PatchCallback":
        from llama_fast.integrations.transformers.trainer import PatchCallback

        return PatchCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
