"""The Llama model, its configurations, and loaders of published checkpoints."""

from .checkpoints import CheckpointError, load, save
from .config import Llama3RopeScaling, LlamaConfig, preset_names
from .kv_cache import KVCache
from .llama import LLaMA

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
