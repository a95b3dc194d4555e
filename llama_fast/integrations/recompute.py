"""Inputs of linear maps that are made again in the backward pass instead of being kept.

The output of a norm or of a gated product costs one pass over memory to make and as much memory to
keep as what it is made from, which is kept anyway. It carries a :class:`Recipe`; a linear map that
is given it keeps the recipe. This is what `torch.utils.checkpoint` does for whole layers, where the
matrix products, too, are done again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_ATTRIBUTE = "_llama_fast_recipe"
# Hooks of others, of activation checkpointing for one, decide for themselves what is kept.
_others_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


class Recipe:
    """How to make a tensor again.

    Args:
        made: the tensor.
        make: gives it, of `inputs`, to the last bit.
        inputs: tensors.
    """

    def __init__(
        self, made: torch.Tensor, make: Callable[..., torch.Tensor], inputs: tuple[Any, ...]
    ) -> None:
        self._place = made.untyped_storage().data_ptr()
        self._numel = made.numel()
        self._make = make
        self._inputs = tuple(t.detach() for t in inputs)
        self._versions = tuple(t._version for t in inputs)
        self._kept_by = 0  # so many will ask for it
        self._asked = 0
        self._again: torch.Tensor | None = None

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | torch.Size:
        """What a node of the graph keeps for `tensor`: of ours, nothing but the shape."""
        ours = tensor.untyped_storage().data_ptr() == self._place
        if not ours or tensor.numel() != self._numel or not tensor.is_contiguous():
            return tensor
        self._kept_by += 1
        return tensor.shape

    def unpack(self, kept: torch.Tensor | torch.Size) -> torch.Tensor:
        """The tensor that a node keeps; made once for all nodes in a row that ask for it."""
        if isinstance(kept, torch.Tensor):
            return kept
        if self._again is None:
            if tuple(t._version for t in self._inputs) != self._versions:
                raise RuntimeError(
                    "one of the tensors needed for gradient computation has been modified by an "
                    "inplace operation: the input of a norm or of a gated product"
                )
            with torch.no_grad(), torch.autocast(self._inputs[0].device.type, enabled=False):
                self._again = self._make(*self._inputs)
        again = self._again
        self._asked += 1
        if self._asked % self._kept_by == 0:
            self._again = None
        return again.view(kept)


def mark(
    made: torch.Tensor, make: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> torch.Tensor:
    """`made`, which `make(*inputs)` gives, with the recipe where a backward pass may want it."""
    if (
        torch.is_grad_enabled()
        and made.requires_grad
        and not torch.compiler.is_compiling()  # a compiler decides this by itself
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in (made, *inputs))
        and all(t.dtype == made.dtype for t in inputs)
        and made.is_contiguous()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    ):
        setattr(made, _ATTRIBUTE, Recipe(made, make, inputs))
    return made


def instead_of(input: torch.Tensor) -> AbstractContextManager[Any]:
    """Within, nodes of the graph keep the recipe of `input`, if it has one, in its place."""
    recipe = None if torch.compiler.is_compiling() else getattr(input, _ATTRIBUTE, None)
    if recipe is None or _others_hooks is None or _others_hooks(True) is not None:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(recipe.pack, recipe.unpack)
