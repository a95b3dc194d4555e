"""llama_fast: fused attention and cross-entropy for Llama-style models, on CPUs and GPUs.

The ops are functions with the signatures of `torch.nn.functional` and further keyword-only options.
A Llama model, checkpoint readers, training and evaluation are built on them.

    import llama_fast
    out = llama_fast.attention(q, k, v, causal=True)
    loss = llama_fast.linear_cross_entropy(hidden, head_weight, targets)

Importing the package loads the ops, `nn`, `patch` and `LLaMA`; everything else is loaded on first
use.
"""

from typing import TYPE_CHECKING

from llama_fast._environment import check_environment
from llama_fast._lazy import is_command, lazy_attributes
from llama_fast._version import __version__

# The console script imports this package before the command line is parsed, and torch takes seconds
# to import. In its process even the ops are loaded on first use, so that --help and errors in the
# options appear at once. In every other process `import llama_fast` registers the operators
# torch.ops.llama_fast.*, for programs that load exported graphs and call nothing in this package.
if not is_command():
    check_environment()
    from llama_fast import nn
    from llama_fast.integrations import patch, unpatch
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

if TYPE_CHECKING:  # the names that the table below imports lazily
    from llama_fast import models
    from llama_fast.eval import evaluate
    from llama_fast.generation import generate
    from llama_fast.integrations.flash_attn import (
        flash_attn_func,
        flash_attn_kvpacked_func,
        flash_attn_qkvpacked_func,
        flash_attn_varlen_func,
        flash_attn_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func,
        flash_attn_with_kvcache,
    )
    from llama_fast.integrations.transformers.auto import AutoModelForCausalLM
    from llama_fast.integrations.transformers.trainer import PatchCallback
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

# The modules that define the public names. In the process of a command, all of them are lazy.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "llama_fast.eval": ("evaluate",),
        "llama_fast.generation": ("generate",),
        "llama_fast.integrations": ("patch", "unpatch"),
        "llama_fast.integrations.flash_attn": (
            "flash_attn_func",
            "flash_attn_kvpacked_func",
            "flash_attn_qkvpacked_func",
            "flash_attn_varlen_func",
            "flash_attn_varlen_kvpacked_func",
            "flash_attn_varlen_qkvpacked_func",
            "flash_attn_with_kvcache",
        ),
        "llama_fast.integrations.transformers.auto": ("AutoModelForCausalLM",),
        "llama_fast.integrations.transformers.trainer": ("PatchCallback",),
        "llama_fast.models": ("LLaMA",),
        "llama_fast.ops": (
            "attention",
            "attention_decode",
            "backends",
            "cross_entropy",
            "empty_cache",
            "linear_cross_entropy",
            "rms_norm",
            "rope",
            "scaled_dot_product_attention",
            "swiglu",
            "use_backend",
        ),
        "llama_fast.ops.torch_functions": ("accelerate",),
        "llama_fast.train": ("Trainer",),
    },
    submodules=(
        "data",
        "eval",
        "generation",
        "info",
        "integrations",
        "models",
        "nn",
        "ops",
        "reference",
        "tokenizers",
        "train",
    ),
)
