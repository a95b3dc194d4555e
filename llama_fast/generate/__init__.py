"""Text generation, token by token, with a key-value cache."""

from .sampling import generate, stream

__all__ = ["generate", "stream"]
