"""Evaluation of language models: next-token accuracy, and scores on benchmarks."""

from .evaluation import evaluate

__all__ = ["evaluate"]
