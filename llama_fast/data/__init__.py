"""From text to packed batches of tokens: documents, chats, shards, packing, loading."""

from .chat import ChatTemplate
from .documents import DataError, read_documents
from .loader import Batch, PackedLoader
from .packing import pack_epoch
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
