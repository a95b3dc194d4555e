"""The Llama model, its configurations, and loaders of published checkpoints."""

from typing import TYPE_CHECKING

from llama_fast._lazy import lazy_attributes

from .config import Llama3RopeScaling, LlamaConfig, preset_names
from .kv_cache import KVCache
from .llama import LLaMA

if TYPE_CHECKING:
    from .checkpoints import CheckpointError, load, save

__all__ = [
    "CheckpointError",
    "KVCache",
    "LLaMA",
    "Llama3RopeScaling",
    "LlamaConfig",
    "load",
    "preset_names",
    "save",
]

# `import llama_fast` needs the model but not the checkpoint readers.
__getattr__, __dir__ = lazy_attributes(
    __name__, {"llama_fast.models.checkpoints": ("CheckpointError", "load", "save")}
)
