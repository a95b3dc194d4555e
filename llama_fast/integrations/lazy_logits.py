"""Logits that are computed at first access, and a loss that does not need them.

In training the head of a language model returns an object that stands for ``hidden @ weight.T``. It
records what models do to logits before the loss (casts, shapes, scaling, softcap). When
`torch.nn.functional.cross_entropy` receives it, `linear_cross_entropy` computes the loss without
the logits. Every other use computes the logits and continues with the tensor, with its gradients:
the model computes the same, only later. From then on the object stands for that tensor, so that
in-place changes persist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llama_fast.integrations.head_product import HeadProduct, TensorMethod
from llama_fast.ops._autocast import autocast_dtype
from llama_fast.ops.linear_cross_entropy import linear_cross_entropy


class LazyLogits:
    """Stands for ``cap(scale * (hidden @ weight.T + bias))`` in some shape and dtype.

    Attributes:
        product: the head's product.
        hidden: (..., E), the hidden states of these logits; a slice of the product's.
        shape: shape of the logits.
        dtype: dtype of the logits.
        steps: tensor methods that the model applied to the product.
        scale: factor on the product.
        softcap: c if the logits are ``c * tanh(scale * x / c)``, else None.
        tanh: whether the logits are ``tanh(scale * x)``: a softcap before its last multiplication.
        tensor: the logits, once computed.
        version: version of the tensor when it was computed.
    """

    def __init__(
        self, product: HeadProduct, hidden: torch.Tensor, shape: torch.Size, dtype: torch.dtype
    ) -> None:
        self.product, self.hidden, self.shape, self.dtype = product, hidden, shape, dtype
        self.steps: tuple[TensorMethod, ...] = ()
        self.scale, self.softcap, self.tanh = 1.0, None, False
        self.tensor: torch.Tensor | None = None
        self.version = 0
        if product.handles is not None:
            product.handles.add(self)

    def compute(self) -> torch.Tensor:
        """The logits; the same tensor at every call.

        Raises:
            RuntimeError: the hidden states or the weight changed since the forward pass.
        """
        if self.tensor is None:
            self.product.compute(self)
            assert self.tensor is not None
        return self.tensor

    def loss(self, target: torch.Tensor, **options: Any) -> torch.Tensor:
        """Cross-entropy with `target` (N,), equal to `F.cross_entropy` of the (N,V) logits."""
        _, weight, bias = self.product.inputs()
        hidden = self.hidden.to(self.product.dtype).reshape(-1, self.hidden.shape[-1])
        if self.scale != 1.0:
            hidden = hidden * self.scale
            bias = None if bias is None else bias * self.scale
        assert weight is not None
        loss: torch.Tensor = linear_cross_entropy(
            hidden, weight, target, linear_bias=bias, softcap=self.softcap, **options
        )

        def recompute(logits: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(logits, target, **options)

        return self.product.track_loss(loss.to(self.dtype), self.steps, recompute)

    def _extend(self, name: str, *arguments: Any, **changes: Any) -> LazyLogits:
        """The logits after one more tensor method, still not computed."""
        new = LazyLogits(self.product, self.hidden, self.shape, self.dtype)
        new.scale, new.softcap, new.tanh = self.scale, self.softcap, self.tanh
        new.steps = (*self.steps, TensorMethod(name, arguments))
        for attribute, value in changes.items():
            setattr(new, attribute, value)
        return new

    @property
    def device(self) -> torch.device:
        """Device of the hidden states."""
        return self.hidden.device

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def requires_grad(self) -> bool:
        """As a tensor's."""
        return self.product.requires_grad if self.tensor is None else self.tensor.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.compute().requires_grad = value

    @property
    def grad(self) -> torch.Tensor | None:
        """As a tensor's."""
        return None if self.tensor is None else self.tensor.grad

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        self.compute().grad = value

    @property
    def data(self) -> torch.Tensor:
        """As a tensor's."""
        return self.compute().data

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        self.compute().data = value

    def retain_grad(self) -> None:
        """As a tensor's; a loss computed without the logits then goes through them."""
        self.compute().retain_grad()
        self.product.want_gradient(self)

    def register_hook(self, hook: Callable[..., Any]) -> Any:
        """As a tensor's; a loss computed without the logits then goes through them."""
        handle = self.compute().register_hook(hook)
        self.product.want_gradient(self)
        return handle

    # Methods that are recorded and not computed.

    def size(self, dim: int | None = None) -> Any:
        """As a tensor's."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """As a tensor's."""
        return len(self.shape)

    def numel(self) -> int:
        """As a tensor's."""
        return self.shape.numel()

    def view(self, *shape: Any) -> Any:
        """The same logits in another shape."""
        if self.tensor is None and not isinstance(shape[0] if shape else None, torch.dtype):
            new = torch.empty(self.shape, device="meta").view(*shape).shape
            if new[-1:] == self.shape[-1:]:
                return self._extend("reshape", new, shape=new)
        return self.compute().view(*shape)

    def reshape(self, *shape: Any) -> Any:
        """The same logits in another shape."""
        return self.view(*shape) if self.tensor is None else self.tensor.reshape(*shape)

    def contiguous(self) -> Any:
        """As a tensor's."""
        return self._extend("contiguous") if self.tensor is None else self.tensor.contiguous()

    def float(self) -> Any:
        """In float32."""
        return self.to(torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As a tensor's; not computed for float32 and float64."""
        if len(args) == 1 and not kwargs and self.tensor is None:
            if args[0] in (self.device, self.dtype):
                return self
            if args[0] in (torch.float32, torch.float64):
                return self._extend("to", args[0], dtype=args[0])
        return self.compute().to(*args, **kwargs)

    def _times(self, method: str, factor: Any) -> Any:
        divided = method == "div"
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or factor == 0:
            return None
        if self.softcap is not None or self.tensor is not None:
            return None
        if self.tanh:  # tanh(x) * c is a softcap of c * x
            if divided or factor < 0:
                return None
            capped = {"scale": self.scale * factor, "softcap": float(factor), "tanh": False}
            return self._extend(method, factor, **capped)
        scale = self.scale / factor if divided else self.scale * factor
        return self._extend(method, factor, scale=scale)

    def __mul__(self, other: Any) -> Any:
        lazy = self._times("mul", other)
        return torch.mul(self.compute(), _materialize(other)) if lazy is None else lazy

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        lazy = self._times("div", other)
        return torch.div(self.compute(), _materialize(other)) if lazy is None else lazy

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
            if isinstance(x, cls) and not x.tanh and x.softcap is None and x.tensor is None:
                return x._extend("tanh", tanh=True)
        if func is torch.autograd.grad:
            _check_inputs(*args, **kwargs)
        return func(*_materialize(args), **_materialize(kwargs))

    def __getattr__(self, name: str) -> Any:
        # Names that Python looks up itself, as for copies, and names that tensors do not have.
        if name.startswith("__") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.compute(), name)

    def __getitem__(self, index: Any) -> Any:
        # A slice of the tokens, such as logits[:, :-1], is the logits of fewer tokens.
        parts = index if isinstance(index, tuple) else (index,)
        whole = len(parts) == self.ndim or Ellipsis in parts
        if (
            self.tensor is None
            and all(part is Ellipsis or isinstance(part, slice) for part in parts)
            and (not whole or parts[-1] == slice(None))
            and self.hidden.shape[:-1] == self.shape[:-1]
            and len(parts) <= self.ndim
        ):
            hidden = self.hidden[index]
            shape = hidden.shape[:-1] + self.shape[-1:]
            return self._extend("__getitem__", index, hidden=hidden, shape=shape)
        return self.compute()[_materialize(index)]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.compute()[_materialize(index)] = _materialize(value)

    def __len__(self) -> int:
        return self.shape[0]

    def __deepcopy__(self, memo: Any) -> Any:
        return self.compute().__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.compute().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        try:
            return repr(self.compute())
        except RuntimeError as error:  # a debugger calls it, too
            return f"<{type(self).__name__} {tuple(self.shape)}: {error}>"


def lazy_logits(hidden: torch.Tensor, head: nn.Linear) -> LazyLogits:
    """The logits of `hidden` (..., E), computed at first access."""
    narrow = autocast_dtype(hidden.device.type)
    dtype = hidden.dtype if narrow is None or hidden.dtype == torch.float64 else narrow
    shape = hidden.shape[:-1] + head.weight.shape[:1]
    return LazyLogits(HeadProduct(hidden, head, dtype), hidden, shape, dtype)


def _operator(name: str, in_place: bool = False) -> Callable[..., Any]:
    def method(self: LazyLogits, *args: Any) -> Any:
        result = getattr(self.compute(), name)(*_materialize(args))
        return self if in_place and result is not NotImplemented else result

    return method


_OPERATORS = """
    abs add and array bool complex contains dlpack dlpack_device eq float floordiv format ge gt
    index int invert iter le lshift lt matmul mod ne neg or pos pow radd rand rdiv rfloordiv
    rlshift rmatmul rmod ror rpow rrshift rshift rsub rtruediv rxor sub xor
"""
_IN_PLACE = "add and floordiv lshift mod mul or pow rshift sub truediv xor"
for _name in _OPERATORS.split():
    setattr(LazyLogits, f"__{_name}__", _operator(f"__{_name}__"))
for _name in _IN_PLACE.split():
    setattr(LazyLogits, f"__i{_name}__", _operator(f"__i{_name}__", in_place=True))


def _check_inputs(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> None:
    for x in inputs if isinstance(inputs, (tuple, list)) else (inputs,):
        if isinstance(x, LazyLogits) and x.product.loss_skipped_logits:
            raise RuntimeError(
                "inputs: expected tensors that the loss was computed from, got logits that it did "
                "not use; call their register_hook or retain_grad, or use "
                "llama_fast.patch(model, loss=False)"
            )


def _materialize(value: Any) -> Any:
    """`value` with each lazy logits in it replaced by its tensor."""
    if isinstance(value, LazyLogits):
        return value.compute()
    if isinstance(value, (tuple, list)):
        return type(value)(_materialize(part) for part in value)
    if isinstance(value, dict):
        return {key: _materialize(part) for key, part in value.items()}
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
    """`F.cross_entropy` of lazy logits, or None where the logits are needed."""
    if input.tensor is not None or input.ndim != 2 or input.tanh:
        return None
    if size_average is not None or reduce is not None:
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
