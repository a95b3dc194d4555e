"""Rotary factors that follow from a sequence's length, chosen for each request.

LongRoPE (Phi-3) has other factors for sequences beyond the original context, dynamic NTK others for
each length. transformers takes the longest position of a whole pass for the length: requests that
are packed into one pass, or split over several, would get the factors of others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


class RotaryLength:
    """The modules of a model whose tables follow from the length.

    Args:
        model: of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[nn.Module] = []
        self._switches: set[int] = set()  # lengths beyond which the factors are others
        self._each = False  # whether those of each length beyond are others again
        for module in model.modules():
            kinds = getattr(module, "rope_type", None)
            by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
            changing = {layer: str(kind) for layer, kind in by_layer.items() if _changes(kind)}
            for layer, kind in changing.items():
                if "dynamic" in kind:
                    self._each = True
                    self._switches.add(int(module.original_max_seq_len))
                else:
                    found: Any = module.config.rope_parameters
                    found = found if layer is None else found[layer]
                    self._switches.add(int(found["original_max_position_embeddings"]))
            if changing:
                self._modules.append(module)

    def group(self, length: int) -> int:
        """A length of the same factors as a sequence of `length` tokens; 0 for a short one."""
        passed = [switch for switch in self._switches if length > switch]
        if not passed:
            return 0
        return length if self._each else max(passed) + 1

    @contextlib.contextmanager
    def fixed(self, length: int) -> Iterator[None]:
        """Inside, tables are those of a sequence of `length` tokens, whichever positions they are
        asked for; with 0, those of a short one."""
        with contextlib.ExitStack() as hooks:
            for module in self._modules:
                before = module.register_forward_pre_hook(_Longer(length), with_kwargs=True)
                after = module.register_forward_hook(_cut)
                hooks.callback(after.remove)
                hooks.callback(before.remove)
            yield


def _changes(kind: Any) -> bool:
    return isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")


class _Longer:
    """Before a module's forward: one more position, which makes the sequence as long as said."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(
        self, module: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given, options = list(args), dict(kwargs)
        where: Any = options if "position_ids" in options else given
        name: Any = "position_ids" if where is options else 1
        positions = where[name]
        last = positions.new_full((*positions.shape[:-1], 1), max(self.length - 1, 0))
        # Dynamic NTK keeps the factors of the longest sequence until it sees a short one.
        where[name] = torch.zeros_like(last)
        module.forward(*given, **options)
        where[name] = torch.cat((positions, last), -1)
        return tuple(given), options


def _cut(module: nn.Module, args: Any, tables: Any) -> Any:
    """After it: the tables (..., S + 1, D) without that position."""
    if isinstance(tables, torch.Tensor):
        return tables[..., :-1, :]
    return tuple(table[..., :-1, :] for table in tables)
