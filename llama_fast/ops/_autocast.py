"""torch.autocast around an op: the dtype it asks for, and how to turn it off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that torch.autocast asks for on a device ("cpu", "cuda"), None if it is off."""
    if _has_autocast(device) and torch.is_autocast_enabled(device):
        dtype: torch.dtype = torch.get_autocast_dtype(device)
        return dtype
    return None


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context that turns torch.autocast off on a device: it would round inside a formula."""
    return torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext()


def _has_autocast(device: str) -> bool:
    # torch.compile can trace the question from torch 2.13 on. For these two the answer is known.
    return device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
