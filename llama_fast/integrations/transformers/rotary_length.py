"""Rotary factors that depend on a sequence's length, selected per request.

LongRoPE (Phi-3) has a second set of factors for sequences beyond the original context; dynamic NTK
has different factors for each length. transformers takes the largest position of a forward pass as
the length. Requests that share a pass, or are split over several, would get wrong factors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


class RotaryLength:
    """The rotary modules of a model whose tables depend on the sequence length.

    Args:
        model: a model of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[nn.Module] = []
        self._limits: set[int] = set()  # lengths at which the factors change
        self._varies_with_length = False  # dynamic NTK: beyond a limit
        for module in model.modules():
            rope_types = getattr(module, "rope_type", None)
            by_layer = rope_types if isinstance(rope_types, dict) else {None: rope_types}
            dynamic = {
                layer: str(rope_type)
                for layer, rope_type in by_layer.items()
                if _depends_on_length(rope_type)
            }
            for layer, rope_type in dynamic.items():
                if "dynamic" in rope_type:
                    self._varies_with_length = True
                    self._limits.add(int(module.original_max_seq_len))
                else:
                    parameters: Any = module.config.rope_parameters
                    parameters = parameters if layer is None else parameters[layer]
                    self._limits.add(int(parameters["original_max_position_embeddings"]))
            if dynamic:
                self._modules.append(module)

    def group(self, length: int) -> int:
        """A length with the same factors as a sequence of `length` tokens; 0 for a short one."""
        exceeded = [limit for limit in self._limits if length > limit]
        if not exceeded:
            return 0
        return length if self._varies_with_length else max(exceeded) + 1

    @contextlib.contextmanager
    def fixed(self, length: int) -> Iterator[None]:
        """Inside the block all tables are those of a sequence of `length` tokens (0: a short one),
        for any positions."""
        with contextlib.ExitStack() as hooks:
            for module in self._modules:
                before = module.register_forward_pre_hook(_AppendPosition(length), with_kwargs=True)
                after = module.register_forward_hook(_drop_last_position)
                hooks.callback(after.remove)
                hooks.callback(before.remove)
            yield


def _depends_on_length(rope_type: Any) -> bool:
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")


class _AppendPosition:
    """A forward pre-hook that appends a position, which sets the length of the sequence."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(
        self, module: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positional, options = list(args), dict(kwargs)
        where: Any = options if "position_ids" in options else positional
        name: Any = "position_ids" if where is options else 1
        positions = where[name]
        last = positions.new_full((*positions.shape[:-1], 1), max(self.length - 1, 0))
        # Dynamic NTK keeps the factors of the longest sequence until a short one resets them.
        where[name] = torch.zeros_like(last)
        module.forward(*positional, **options)
        where[name] = torch.cat((positions, last), -1)
        return tuple(positional), options


def _drop_last_position(module: nn.Module, args: Any, tables: Any) -> Any:
    """A forward hook: the tables (..., S + 1, D) without the appended position."""
    if isinstance(tables, torch.Tensor):
        return tables[..., :-1, :]
    return tuple(table[..., :-1, :] for table in tables)
