"""A kernel repository for the Hub's `kernels` package: the layers and attention of llama_fast.

`kernels` runs this file under the name in `metadata.json`. What it offers is in the installed
package.
"""

try:
    from llama_fast.integrations.hub_kernels import layers
    from llama_fast.integrations.transformers.attention import attention_function
except ModuleNotFoundError as error:
    if error.name != "llama_fast":
        raise
    raise ImportError(
        "this kernel runs the operators of the package llama_fast, which is not installed: "
        "pip install llama_fast"
    ) from None

__all__ = ["flash_attn_forward", "layers", "supports_flash_attn"]

# transformers looks for these two names. A kernel that has them gets the masks of "sdpa", which are
# complete; one with `flash_attn_varlen_func` gets none for documents packed into several rows.
flash_attn_forward = attention_function
supports_flash_attn = True
