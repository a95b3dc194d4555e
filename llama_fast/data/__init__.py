"""Turns text into packed batches of tokens: documents, chats, shards, packing, loading."""

from typing import TYPE_CHECKING

from llama_fast._lazy import lazy_attributes

if TYPE_CHECKING:
    from .chat import ChatTemplate
    from .documents import read_documents
    from .loader import Batch, PackedLoader
    from .packing import pack_epoch
    from .rows import DataError
    from .shards import ShardWriter, TokenShards

__all__ = [
    "Batch",
    "ChatTemplate",
    "DataError",
    "PackedLoader",
    "ShardWriter",
    "TokenShards",
    "pack_epoch",
    "read_documents",
]

# Only the loader needs torch: texts are tokenised and checked without it.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "llama_fast.data.chat": ("ChatTemplate",),
        "llama_fast.data.documents": ("read_documents",),
        "llama_fast.data.loader": ("Batch", "PackedLoader"),
        "llama_fast.data.packing": ("pack_epoch",),
        "llama_fast.data.rows": ("DataError",),
        "llama_fast.data.shards": ("ShardWriter", "TokenShards"),
    },
)
