"""Text generation: an engine that batches requests, and functions for a tensor of prompts."""

from .engine import Engine
from .requests import GenerationRequest, GenerationResult, Piece
from .sampling import SamplingOptions
from .simple import generate, stream

__all__ = [
    "Engine",
    "GenerationRequest",
    "GenerationResult",
    "Piece",
    "SamplingOptions",
    "generate",
    "stream",
]
