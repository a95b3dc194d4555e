"""Training of language models."""

from typing import TYPE_CHECKING

from llama_fast._lazy import lazy_attributes

if TYPE_CHECKING:
    from .trainer import EpochResult, Trainer

__all__ = ["EpochResult", "Trainer"]

# `llama-fast train --help` reads `train.config`, which needs no torch.
__getattr__, __dir__ = lazy_attributes(
    __name__, {"llama_fast.train.trainer": ("EpochResult", "Trainer")}
)
