"""The version of llama_fast, in one place."""

__version__ = "0.1.0"
