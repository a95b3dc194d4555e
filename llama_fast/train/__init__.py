"""Training of language models."""

from .trainer import Epoch, Trainer

__all__ = ["Epoch", "Trainer"]
