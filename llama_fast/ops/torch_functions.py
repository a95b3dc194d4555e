"""Routes torch's own functions to our kernels inside a `with` block."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from llama_fast._torch_internals import in_transform
from llama_fast.ops.cross_entropy import cross_entropy
from llama_fast.ops.linear_cross_entropy import linear_cross_entropy
from llama_fast.ops.rms_norm import rms_norm
from llama_fast.ops.scaled_dot_product_attention import scaled_dot_product_attention

_NARROW = (torch.bfloat16, torch.float16)


class _NotOurs(Exception):
    """Our kernels do not support this call, so torch's function computes it."""


def accelerate(
    *, attention: bool = True, loss: bool = True, rms_norm: bool = True
) -> TorchFunctionMode:
    """Run torch's functions on the fused kernels inside ``with llama_fast.accelerate():``.

    The functions are `F.scaled_dot_product_attention`, `F.cross_entropy`, `F.linear_cross_entropy`
    and `F.rms_norm` of `torch.nn.functional`. Every call in the current thread is routed, also from
    torch's own modules (`nn.MultiheadAttention` calls the first). Arguments, results, dtypes and
    errors are torch's. torch itself computes what our kernels do not support: nested, sparse and
    meta tensors, tensor subclasses, `torch.func`. If our kernel refuses a value that torch accepts,
    torch computes it and a RuntimeWarning says so. Backward passes may run outside the block.
    Blocks may be nested.

    Args:
        attention: route `F.scaled_dot_product_attention`.
        loss: route `F.cross_entropy` and `F.linear_cross_entropy`.
        rms_norm: route `F.rms_norm`.

    Returns:
        A context manager that can be entered once.

    Raises:
        TypeError: an option is not a bool.
    """
    options = {"attention": attention, "loss": loss, "rms_norm": rms_norm}
    for name, value in options.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {value!r}")
    return _Accelerate(tuple(part for part, on in options.items() if on))


def accelerated(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the forward of one of torch's modules inside :func:`accelerate`.

    A call with nested tensors runs unchanged: torch's layers pass them to functions that cannot be
    routed.
    """
    if any(isinstance(value, torch.Tensor) and value.is_nested for value in args):
        return forward(*args, **kwargs)
    with accelerate():
        return forward(*args, **kwargs)


class _Accelerate(TorchFunctionMode):
    def __init__(self, parts: tuple[str, ...]) -> None:
        super().__init__()
        self._ours = {f: ours for part in parts for f, ours in _ROUTES[part].items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = self._ours.get(func)
        if ours is None:
            return func(*args, **kwargs)
        return _ours_or_torchs(ours, func, args, kwargs)


def _ours_or_torchs(
    ours: Callable[..., Any], theirs: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> Any:
    """Return our function's result, or torch's if ours does not support or refuses the input.

    If both refuse the input, torch's error is raised. If only ours does, that is a gap in our
    kernels: torch's result is returned with a warning.
    """
    refusal = None
    try:
        return ours(*args, **kwargs)
    except _NotOurs:
        pass
    except (TypeError, ValueError, IndexError) as error:
        refusal = f"{type(error).__name__}: {error}"
    result = theirs(*args, **kwargs)
    if refusal is not None and not torch.compiler.is_compiling():
        warnings.warn(
            f"llama_fast.accelerate: torch computed {theirs.__name__}, because the kernel of "
            f"llama_fast refused what torch accepts ({refusal})",
            RuntimeWarning,
            stacklevel=3,
        )
    return result


def _check(*tensors: torch.Tensor | None) -> None:
    """Raise _NotOurs unless all tensors are ordinary ones on devices that have kernels."""
    if not torch.compiler.is_compiling() and in_transform():
        raise _NotOurs
    for t in tensors:
        if t is not None and not (
            type(t) in (torch.Tensor, torch.nn.Parameter)
            and t.layout == torch.strided
            and not t.is_nested
            and t.device.type in ("cpu", "cuda")
        ):
            raise _NotOurs


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    _check(query, key, value, attn_mask)
    return scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )


def _attention_or_torchs(*args: Any, **kwargs: Any) -> torch.Tensor:
    result: torch.Tensor = _ours_or_torchs(_attention, F.scaled_dot_product_attention, args, kwargs)
    return result


def _of_modules() -> Callable[..., Any]:
    """torch's function behind `torch.nn.MultiheadAttention`, with our attention in its globals.

    A function mode receives that function as a whole and does not see the calls inside it.
    """
    theirs = F.multi_head_attention_forward
    scope = dict(theirs.__globals__)
    scope.pop("__name__", None)  # with a name, torch.compile would look globals up in that module
    scope["has_torch_function"] = lambda _: False
    scope["scaled_dot_product_attention"] = _attention_or_torchs
    function = types.FunctionType(
        theirs.__code__, scope, theirs.__name__, theirs.__defaults__, theirs.__closure__
    )
    function.__kwdefaults__ = theirs.__kwdefaults__
    return function


_heads = _of_modules()


def _multi_head(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    _check(query, key, value)
    return _heads(query, key, value, *args, **kwargs)


def _loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    _check(input, target, weight)
    if size_average is not None or reduce is not None:
        raise _NotOurs
    loss = cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
    assert isinstance(loss, torch.Tensor)
    return _as_torchs(loss, input)


def _linear_loss(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> torch.Tensor:
    _check(input, linear_weight, target, linear_bias, weight)
    if linear_weight.dim() != 2 or target.is_floating_point() or options is not None:
        raise _NotOurs
    loss = linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
    )
    assert isinstance(loss, torch.Tensor)
    return _as_torchs(loss, input)


def _as_torchs(loss: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """The loss in torch's dtype: that of the logits, float32 under autocast."""
    if input.dtype in _NARROW and not torch.is_autocast_enabled(input.device.type):
        return loss.to(input.dtype)
    return loss


def _norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    _check(input, weight)
    shape = tuple(normalized_shape)
    if weight is None or weight.shape != shape or input.shape[-len(shape) :] != shape:
        raise _NotOurs
    if weight.dtype != input.dtype or torch.is_autocast_enabled(input.device.type):
        raise _NotOurs
    if eps is None:
        if input.dtype in _NARROW:  # torch's default epsilon differs between its versions
            raise _NotOurs
        eps = torch.finfo(input.dtype).eps
    rows = input.flatten(-len(shape)) if len(shape) > 1 else input
    out = rms_norm(rows, weight.flatten(), eps)
    assert isinstance(out, torch.Tensor)
    return out.view(input.shape)


_ROUTES: dict[str, dict[Any, Callable[..., Any]]] = {
    "attention": {
        F.scaled_dot_product_attention: _attention,
        F.multi_head_attention_forward: _multi_head,
    },
    "loss": {F.cross_entropy: _loss},
    "rms_norm": {F.rms_norm: _norm, torch.rms_norm: _norm},
}
if hasattr(F, "linear_cross_entropy"):  # since torch 2.13
    _ROUTES["loss"][F.linear_cross_entropy] = _linear_loss
