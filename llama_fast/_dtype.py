"""Floating-point dtypes by name."""

from __future__ import annotations

import torch

_NAMES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype with this name; dtypes as they are, and None for None and "auto".

    Raises:
        ValueError: there is no such dtype.
    """
    if dtype is None or dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _NAMES:
        raise ValueError(f"dtype: expected one of auto, {', '.join(_NAMES)}, got {dtype!r}")
    return _NAMES[dtype]
