"""Modules with the names, arguments and state-dict keys of `torch.nn`, on the fused kernels.

Each is a subclass of torch's module of that name and means the same: its forward is torch's own,
with attention, losses and norms in it computed by our kernels (:func:`llama_fast.accelerate`).
Where torch's transformer layers have a fast path of their own, in eval mode, ours takes its place.
Attention whose weights are asked for (``need_weights=True``) is torch's: ours never has them.
`torch.jit.script` compiles torch's own modules in their place, parameters included.
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


def _torchs(module: Module) -> Module:
    """What `torch.jit.script` compiles: torch's own module, with the same parameters.

    TorchScript has no Python functions to choose a kernel by. Of a subclass that somebody else
    wrote: the module itself.
    """
    kind: Any = type(module)
    if kind.__module__ != __name__:
        return module
    made: Module = kind.__bases__[0].__new__(kind.__bases__[0])
    vars(made).update({**vars(module), "_modules": dict(module._modules)})
    return made


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`; pass ``need_weights=False`` for the fused kernel."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's: (B,S,E) with `batch_first`, else (S,B,E), or (S,E); and the weights."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torchs


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer`, with `src_mask` and `src_key_padding_mask`."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As torch's: `src` (B,S,E) with `batch_first`, else (S,B,E), or (S,E); the same comes."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torchs


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer`, with all its masks."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As torch's: `tgt` (B,S,E) with `batch_first`, else (S,B,E), or (S,E); the same comes."""
        return accelerated(super().forward, *args, **kwargs)

    __prepare_scriptable__ = _torchs


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As torch's: (..., *normalized_shape), and the same comes."""
        return accelerated(super().forward, x)

    __prepare_scriptable__ = _torchs


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """As torch's: logits (N,V) or (N,V,d1,...), classes or probabilities as targets."""
        return accelerated(super().forward, input, target)

    __prepare_scriptable__ = _torchs
