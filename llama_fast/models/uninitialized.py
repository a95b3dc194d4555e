"""Creates models whose weights are about to be read from a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .config import LlamaConfig
from .llama import LLaMA


class _NoInitialization(TorchFunctionMode):
    """Skips the functions of `torch.nn.init`, which would draw numbers that are thrown away."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def uninitialized(config: LlamaConfig, device: torch.device | str = "cpu") -> LLaMA:
    """Create a model without setting its weights, which have to be filled.

    Args:
        config: the architecture.
        device: device of the weights; "meta" for weights without memory, to be assigned.
    """
    with torch.device("meta"), _NoInitialization():
        model = LLaMA(config)
    return model if torch.device(device).type == "meta" else model.to_empty(device=device)
