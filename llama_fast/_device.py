"""Which device a name means."""

from __future__ import annotations

import os

import torch


def device_of(name: str) -> torch.device:
    """What `auto`, `cpu`, `cuda`, ... mean to this process: of several GPUs its own.

    Raises:
        ValueError: no such device here.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected cpu, cuda or auto, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a GPU for 'cuda', torch finds none")
    return device
