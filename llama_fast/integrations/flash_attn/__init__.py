"""flash-attn 2's functions on our kernels: only the import changes.

    from llama_fast import flash_attn_func          # was: from flash_attn import flash_attn_func

Names, argument order, defaults, layouts and meaning are those of flash-attn 2
(https://github.com/Dao-AILab/flash-attention); Dao, "FlashAttention-2" (2023, arXiv:2307.08691).
They run on every device that our ops support, in any float dtype, with any head size, page size and
number of rotary dimensions.
"""

from llama_fast.integrations.flash_attn.functions import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)
from llama_fast.integrations.flash_attn.kvcache import flash_attn_with_kvcache
from llama_fast.integrations.flash_attn.varlen import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
