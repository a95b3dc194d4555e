"""Devices by name."""

from __future__ import annotations

import os

import torch


def device_of(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, ... mean in this process.

    `cuda` and `auto` select the GPU of this process's LOCAL_RANK.

    Raises:
        ValueError: there is no such device.
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
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each type of device has its own exception
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        # "Could not run 'aten::empty' with arguments from the 'MPS' backend. This could be because"
        missing = isinstance(error, NotImplementedError)
        reason = "this build of it has no kernels for that" if missing else first
        raise ValueError(f"device: torch cannot use {name!r} here: {reason}") from None
    return device
