"""Our kernels in transformers' models.

    AutoModelForCausalLM.from_pretrained(..., attn_implementation="llama_fast")

works once this module was imported; `import llama_fast` sees to it.
"""

from llama_fast.integrations.transformers.attention import NAME, register

__all__ = ["NAME", "register"]

register()
