"""Modules with the names, arguments and state-dict keys of `torch.nn`, on the fused kernels.

Each is a subclass of torch's module of that name with the same meaning: its forward is torch's own,
but attention, losses and norms in it run on our kernels (:func:`llama_fast.accelerate`), which also
replace the fast path of torch's transformer layers in eval mode. Attention weights
(``need_weights=True``) are computed by torch. `torch.jit.script` compiles torch's own modules, with
the same parameters.
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
        """As torch's: (B,S,E) with `batch_first`, else (S,B,E), or (S,E); and the weights."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torch_module


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer`, with `src_mask` and `src_key_padding_mask`."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As torch's; `src` is (B,S,E) (`batch_first`), (S,B,E) or (S,E), as is the result."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torch_module


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer`, with all its masks."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As torch's; `tgt` is (B,S,E) (`batch_first`), (S,B,E) or (S,E), as is the result."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torch_module


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As torch's: (..., *normalized_shape), which is returned."""
        return accelerated(super().forward, x)

    __prepare_scriptable__ = _torch_module


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """As torch's: logits (N,V) or (N,V,d1,...), classes or probabilities as targets."""
        return accelerated(super().forward, input, target)

    __prepare_scriptable__ = _torch_module
