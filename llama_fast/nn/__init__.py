"""Modules with the names, arguments and state-dict keys of `torch.nn`, on the fused kernels.

Each module subclasses torch's module of the same name and behaves like it. It runs torch's own
forward, in which attention, losses and norms are computed by our kernels
(:func:`llama_fast.accelerate`), also in place of the fast path that torch's transformer layers take
in evaluation mode. torch computes attention weights (``need_weights=True``). `torch.jit.script`
compiles torch's own module, with the same parameters.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from llama_fast.nn.linear_cross_entropy import LinearCrossEntropyLoss
from llama_fast.ops.torch_functions import accelerated

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "MultiheadAttention",
    "RMSNorm",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
]


Module = TypeVar("Module", bound=torch.nn.Module)


def _torch_module(module: Module) -> Module:
    """The module that `torch.jit.script` compiles: torch's own, with the same parameters.

    TorchScript cannot call the Python functions that choose a kernel. Subclasses outside this
    module are compiled as they are.
    """
    cls: Any = type(module)
    if cls.__module__ != __name__:
        return module
    original: Module = cls.__bases__[0].__new__(cls.__bases__[0])
    vars(original).update({**vars(module), "_modules": dict(module._modules)})
    return original


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`; pass ``need_weights=False`` for the fused kernel."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's: output ((B,S,E) with `batch_first`, else (S,B,E), or (S,E)) and weights."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torch_module


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer`, with `src_mask` and `src_key_padding_mask`."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As torch's; `src` and result are (B,S,E) with `batch_first`, else (S,B,E), or (S,E)."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torch_module


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer`, with all its masks."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As torch's; `tgt` and result are (B,S,E) with `batch_first`, else (S,B,E), or (S,E)."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torch_module


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As torch's; input and result are (..., *normalized_shape)."""
        return accelerated(super().forward, x)

    __prepare_scriptable__ = _torch_module


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """As torch's: logits (N,V) or (N,V,d1,...); targets are class indices or probabilities."""
        return accelerated(super().forward, input, target)

    __prepare_scriptable__ = _torch_module
