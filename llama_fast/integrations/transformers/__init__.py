"""Our kernels in models of transformers.

Importing this module registers the attention implementation "llama_fast"; `import llama_fast` does
so when transformers is imported:

    AutoModelForCausalLM.from_pretrained(..., attn_implementation="llama_fast")
"""

from llama_fast._extras import lacking

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(lacking("models of transformers", "transformers", "patch")) from error

from llama_fast.integrations.transformers.attention import NAME, register

__all__ = ["NAME", "register"]

register()
