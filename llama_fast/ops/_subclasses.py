"""Tensor subclasses among the arguments of the ops.

What a subclass does with torch's functions in `__torch_function__` it does with ours: it is asked
first. So is whatever else has that method, as lazy logits have it. A subclass that hands on to
torch.Tensor's own (one for logging does) is then an ordinary tensor. torch's `CausalBias` is a mask
in words, over memory that means nothing: the attention ops know it, and no other argument may be
one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.overrides import handle_torch_function

from llama_fast._torch_internals import has_torch_function

_F = TypeVar("_F", bound=Callable[..., object])
_ORDINARY = frozenset(
    (torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple, torch.dtype)
)
_DEFAULT = torch.Tensor.__torch_function__.__func__


def overridable(function: _F) -> _F:
    """An op that asks subclasses of torch.Tensor first, as torch's own functions do."""

    @functools.wraps(function)
    def op(*args: object, **kwargs: object) -> object:
        if kwargs:
            for value in kwargs.values():
                if type(value) not in _ORDINARY and _overrides(value):
                    return _ask(op, args, kwargs)
        for value in args:
            if type(value) not in _ORDINARY and _overrides(value):
                return _ask(op, args, kwargs)
        return function(*args, **kwargs)

    return op  # type: ignore[return-value]


def _overrides(value: object) -> bool:
    """Whether a value has a `__torch_function__` of its own, which is in force."""
    own = getattr(type(value), "__torch_function__", None)
    return (
        own is not None
        and not isinstance(value, CausalBias)
        and getattr(own, "__func__", None) is not _DEFAULT
        and has_torch_function(own)
    )


def _ask(op: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    relevant = [v for v in (*args, *kwargs.values()) if hasattr(type(v), "__torch_function__")]
    return handle_torch_function(op, relevant, *args, **kwargs)


def causal_bias(name: str, bias: CausalBias, queries: int, keys: int) -> bool:
    """Whether the bias is aligned bottom-right (True) or top-left, of which a square one is both.

    Raises:
        ValueError: it is one of other sizes.
    """
    size = (bias.seq_len_q, bias.seq_len_kv)
    if size != (queries, keys):
        raise ValueError(
            f"{name}: expected a CausalBias of {queries} queries and {keys} keys, got one of "
            f"{size[0]} and {size[1]}"
        )
    return bias.variant == CausalVariant.LOWER_RIGHT or queries == keys
