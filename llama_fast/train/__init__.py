"""Training of language models."""

from .trainer import EpochResult, Trainer

__all__ = ["EpochResult", "Trainer"]
