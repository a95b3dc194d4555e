"""Models of transformers that run our kernels by way of the Hub's `kernels` package."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llama_fast.integrations import forward, register_kernels, unregister_kernels

ATTENTION = "llama-fast/llama-fast-layers"


@contextlib.contextmanager
def kernelized(model: Any, attention: bool = False) -> Iterator[Any]:
    """`model` with our kernels; afterwards they are registered no more."""
    before = model.config._attn_implementation
    register_kernels()
    try:
        model.set_use_kernels(True)
        if attention:
            model.set_attn_implementation(ATTENTION)
        yield model
    finally:
        if attention:
            model.set_attn_implementation(before)
        unregister_kernels(model)


def with_attention(model: Any) -> Any:
    """:func:`kernelized` with our attention."""
    return kernelized(model, attention=True)


def replaced(model: Any) -> dict[str, int]:
    """How many modules, and functions of the model, run which of our layers."""
    functions = {
        id(f): f for m in model.modules() for f in getattr(m, "_kernel_funcs", {}).values()
    }
    ours = [m for m in (*model.modules(), *functions.values()) if forward.is_kernel(m)]
    return dict(Counter(m.forward.__func__.__qualname__.split(".")[0] for m in ours))
