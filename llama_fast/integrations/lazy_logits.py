"""Logits that are not computed until somebody looks at them, and a loss that never does.

The head of a language model gives, in training, an object that stands for ``hidden @ weight.T``.
What models do to logits before the loss (casts, shapes, scaling, softcap) is written down; when
`torch.nn.functional.cross_entropy` gets them, `linear_cross_entropy` computes the loss without
them. Everything else computes the logits and goes on with the tensor, derivatives included: what a
model does is never changed, only when.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llama_fast.ops.linear_cross_entropy import linear_cross_entropy


@dataclass(frozen=True, eq=False)
class LazyLogits:
    """Stands for ``cap(scale * (hidden @ weight.T + bias))`` in some shape and dtype.

    Attributes:
        hidden: (..., E), what the head was given.
        head: the head, for its weight (V,E) and bias (V,).
        shape: of the logits.
        dtype: of the logits.
        product_dtype: of the head's product.
        scale: a factor.
        softcap: c where c * tanh(scale * x / c) stands for scale * x, or None.
        tanh: whether tanh(scale * x) stands for it: a softcap that is not multiplied yet.
    """

    hidden: torch.Tensor
    head: nn.Linear
    shape: torch.Size
    dtype: torch.dtype
    product_dtype: torch.dtype
    scale: float = 1.0
    softcap: float | None = None
    tanh: bool = False

    requires_grad = True  # there would be no loss to differentiate otherwise

    @property
    def device(self) -> torch.device:
        """That of the input."""
        return self.hidden.device

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def compute(self) -> torch.Tensor:
        """The logits."""
        x = F.linear(*self._product())
        if self.dtype in (torch.float32, torch.float64):  # a softcap that was to be narrow gains
            x = x.to(self.dtype)
        if self.scale != 1.0:
            x = x * self.scale
        if self.softcap is not None:
            x = self.softcap * torch.tanh(x / self.softcap)
        if self.tanh:
            x = torch.tanh(x)
        return x.to(self.dtype).reshape(self.shape)

    def loss(self, target: torch.Tensor, **options: Any) -> torch.Tensor:
        """Their cross-entropy with `target` (N,), as torch's function for (N,V) logits."""
        hidden, weight, bias = self._product()
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if self.scale != 1.0:
            hidden = hidden * self.scale
            bias = None if bias is None else bias * self.scale
        loss: torch.Tensor = linear_cross_entropy(
            hidden, weight, target, linear_bias=bias, softcap=self.softcap, **options
        )
        return loss.to(self.dtype)

    def _product(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Input, weight and bias in the dtype of the product, which autocast may have chosen."""
        weight, bias = self.head.weight, self.head.bias
        wanted = self.product_dtype
        bias = None if bias is None else bias.to(wanted)
        return self.hidden.to(wanted), weight.to(wanted), bias

    # What is only written down.

    def size(self, dim: int | None = None) -> Any:
        """As a tensor's."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As a tensor's."""
        return len(self.shape)

    def view(self, *shape: Any) -> Any:
        """The same logits in another shape."""
        if not isinstance(shape[0] if shape else None, torch.dtype):
            new = torch.empty(self.shape, device="meta").view(*shape).shape
            if new[-1:] == self.shape[-1:]:
                return replace(self, shape=new)
        return self.compute().view(*shape)

    reshape = view

    def contiguous(self) -> LazyLogits:
        """Computed logits will be."""
        return self

    def float(self) -> LazyLogits:
        """In float32."""
        return self.to(torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """In another dtype that is no narrower; else computed."""
        if len(args) == 1 and not kwargs:
            if args[0] == self.device:
                return self
            if args[0] in (self.dtype, torch.float32, torch.float64):
                return replace(self, dtype=torch.promote_types(self.dtype, args[0]))
        return self.compute().to(*args, **kwargs)

    def _times(self, factor: Any, divided: bool = False) -> Any:
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or factor == 0:
            return NotImplemented
        if self.softcap is not None:
            return NotImplemented
        if self.tanh:  # tanh(x) * c is a softcap of c * x
            if divided or factor < 0:
                return NotImplemented
            return replace(self, scale=self.scale * factor, softcap=float(factor), tanh=False)
        return replace(self, scale=self.scale / factor if divided else self.scale * factor)

    def __mul__(self, other: Any) -> Any:
        return _else_computed(self, self._times(other), other, torch.mul)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return _else_computed(self, self._times(other, divided=True), other, torch.div)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy and isinstance(args[0] if args else None, cls):
            loss = _cross_entropy(*args, **kwargs)
            if loss is not None:
                return loss
        if func is torch.tanh and len(args) == 1 and not kwargs:
            x = args[0]
            if isinstance(x, cls) and not x.tanh and x.softcap is None:
                return replace(x, tanh=True)
        return func(*_computed(args), **_computed(kwargs))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself looks for, in copies for one
            raise AttributeError(name)
        return getattr(self.compute(), name)

    def __getitem__(self, index: Any) -> Any:
        # A slice of the tokens, as in logits[:, :-1], is logits of fewer tokens.
        parts = index if isinstance(index, tuple) else (index,)
        whole = len(parts) == self.ndim or Ellipsis in parts
        if (
            all(part is Ellipsis or isinstance(part, slice) for part in parts)
            and (not whole or parts[-1] == slice(None))
            and self.hidden.shape[:-1] == self.shape[:-1]
            and len(parts) <= self.ndim
        ):
            hidden = self.hidden[index]
            return replace(self, hidden=hidden, shape=hidden.shape[:-1] + self.shape[-1:])
        return self.compute()[index]

    def __len__(self) -> int:
        return self.shape[0]


def stand_for(hidden: torch.Tensor, head: nn.Linear) -> LazyLogits:
    """What `head` makes of `hidden` (..., E), to be computed when somebody looks."""
    kind = hidden.device.type
    dtype = hidden.dtype
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind) if dtype != torch.float64 else dtype
    shape = hidden.shape[:-1] + head.weight.shape[:1]
    return LazyLogits(hidden, head, shape, dtype, dtype)


def _operator(name: str) -> Callable[..., Any]:
    def method(self: LazyLogits, *args: Any) -> Any:
        return getattr(self.compute(), name)(*_computed(args))

    return method


_OPERATORS = """
    add radd sub rsub neg pow matmul rtruediv eq ne lt le gt ge invert iter float int bool
"""
for _name in _OPERATORS.split():
    setattr(LazyLogits, f"__{_name}__", _operator(f"__{_name}__"))


def _else_computed(x: LazyLogits, lazy: Any, other: Any, func: Callable[..., Any]) -> Any:
    return func(x.compute(), _computed(other)) if lazy is NotImplemented else lazy


def _computed(value: Any) -> Any:
    """`value` with lazy logits in it computed."""
    if isinstance(value, LazyLogits):
        return value.compute()
    if isinstance(value, (tuple, list)):
        return type(value)(_computed(part) for part in value)
    if isinstance(value, dict):
        return {key: _computed(part) for key, part in value.items()}
    return value


def _cross_entropy(
    input: LazyLogits,
    target: Any,
    weight: torch.Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor | None:
    """torch's function for lazy logits, or None where it has to be torch's."""
    if input.ndim != 2 or input.tanh or size_average is not None or reduce is not None:
        return None
    if not isinstance(target, torch.Tensor) or target.dtype != torch.int64 or target.dim() != 1:
        return None
    return input.loss(
        target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
