"""Evaluation of language models."""

from .accuracy import evaluate

__all__ = ["evaluate"]
