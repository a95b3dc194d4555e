"""Tensor subclasses among the arguments of the ops.

The ops call `__torch_function__` of a tensor subclass, or of any other class that defines it (lazy
logits do), as torch's functions do. If it defers to torch.Tensor's own method, as a subclass for
logging does, the op treats the argument as an ordinary tensor. torch's `CausalBias` describes a
mask and holds no values: the attention ops accept it as their bias, and no other argument may be
one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeGuard, TypeVar

import torch
from torch.overrides import handle_torch_function

from llama_fast._torch_internals import has_torch_function

if TYPE_CHECKING:
    from torch.nn.attention.bias import CausalBias

_P = ParamSpec("_P")
_R = TypeVar("_R")
_ORDINARY = frozenset(
    (torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple, torch.dtype)
)
_DEFAULT = torch.Tensor.__torch_function__.__func__


def overridable(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make `function` call `__torch_function__` of its arguments first, as torch's functions do."""

    @functools.wraps(function)
    def op(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if kwargs:
            for value in kwargs.values():
                if type(value) not in _ORDINARY and _overrides(value):
                    return _call_override(op, args, kwargs)
        for value in args:
            if type(value) not in _ORDINARY and _overrides(value):
                return _call_override(op, args, kwargs)
        return function(*args, **kwargs)

    return op


def _overrides(value: object) -> bool:
    """Whether a value defines `__torch_function__` and has not disabled it."""
    own = getattr(type(value), "__torch_function__", None)
    return (
        own is not None
        and getattr(own, "__func__", None) is not _DEFAULT
        and not is_causal_bias(value)
        and has_torch_function(own)
    )


def _call_override(op: Callable[..., _R], args: tuple[object, ...], kwargs: dict[str, Any]) -> _R:
    relevant = [v for v in (*args, *kwargs.values()) if hasattr(type(v), "__torch_function__")]
    result: _R = handle_torch_function(op, relevant, *args, **kwargs)
    return result


def is_causal_bias(value: object) -> TypeGuard[CausalBias]:
    """Whether a value is torch's `CausalBias`.

    The module of `CausalBias` imports torch._dynamo, which takes as long as importing torch, so it
    is imported only if `value` is a tensor subclass.
    """
    if type(value) in _ORDINARY:
        return False
    from torch.nn.attention.bias import CausalBias

    return isinstance(value, CausalBias)


def causal_bias(name: str, bias: CausalBias, queries: int, keys: int) -> bool:
    """Whether a `CausalBias` is aligned bottom-right (or is square) rather than top-left.

    Raises:
        ValueError: its sizes are not the numbers of queries and keys.
    """
    size = (bias.seq_len_q, bias.seq_len_kv)
    if size != (queries, keys):
        raise ValueError(
            f"{name}: expected a CausalBias of {queries} queries and {keys} keys, got one of "
            f"{size[0]} and {size[1]}"
        )
    from torch.nn.attention.bias import CausalVariant

    return bias.variant == CausalVariant.LOWER_RIGHT or queries == keys
