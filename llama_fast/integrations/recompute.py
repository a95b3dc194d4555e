"""Inputs of linear maps that are made again in the backward pass instead of being kept.

The output of a norm or of a gated product costs one pass over memory to make and as much memory to
keep as what it is made from, which is kept anyway. It carries a :class:`Recipe`; a linear map that
is given it keeps the recipe. This is what `torch.utils.checkpoint` does for whole layers, where the
matrix products, too, are done again.

A recipe stands for the tensor as it was made, of the inputs as they were. A linear map that is
given a tensor changed in place keeps the tensor; an input changed before the backward pass is an
error. A tensor that may be written to past its version gets no recipe (:mod:`bystanders`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from llama_fast._torch_internals import (
    has_dispatch_mode,
    has_saved_tensors_hooks,
    in_transform,
    is_jit_tracing,
)
from llama_fast.integrations import bystanders

_ATTRIBUTE = "_llama_fast_recipe"


class Recipe:
    """How to make a tensor again.

    Args:
        made: the tensor.
        make: gives it, of `inputs`, to the last bit.
        inputs: tensors. Vectors are copied: FSDP frees the weight of a norm that is wrapped alone.
    """

    def __init__(
        self, made: torch.Tensor, make: Callable[..., torch.Tensor], inputs: tuple[Any, ...]
    ) -> None:
        self._version = made._version
        self._place = made.untyped_storage().data_ptr()
        self._numel = made.numel()
        self._make = make
        self._inputs = tuple(t.detach().clone() if t.dim() == 1 else t.detach() for t in inputs)
        self._versions = tuple(t._version for t in self._inputs)
        self._kept_by = 0  # so many will ask for it
        self._asked = 0
        self._again: torch.Tensor | None = None

    def stands_for(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is what was made, all of it, and has not been changed since."""
        return (
            tensor._version == self._version
            and tensor.numel() == self._numel
            and tensor.is_contiguous()
            and tensor.untyped_storage().data_ptr() == self._place
        )

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | torch.Size:
        """What a node of the graph keeps for `tensor`: of ours, nothing but the shape."""
        if not self.stands_for(tensor):
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
    module: nn.Module,
    made: torch.Tensor,
    make: Callable[..., torch.Tensor],
    *inputs: torch.Tensor,
    within: bool = False,
) -> torch.Tensor:
    """`made`, which `make(*inputs)` gives, with the recipe where a backward pass may want it.

    Args:
        module: which makes it; of a model that :func:`bystanders.watch` was told of.
        made: a tensor.
        make: gives it, of `inputs`, to the last bit.
        *inputs: tensors.
        within: `made` goes to a module inside of `module`.
    """
    if (
        torch.is_grad_enabled()
        and made.requires_grad
        and not torch.compiler.is_compiling()  # a compiler decides this by itself
        and not is_jit_tracing()
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in (made, *inputs))
        and all(t.dtype == made.dtype for t in inputs)
        and made.is_contiguous()
        and not in_transform()
        and not has_dispatch_mode()
        # Hooks of others, of activation checkpointing for one, decide for themselves what is kept.
        and not has_saved_tensors_hooks()
        and not bystanders.may_write(module, within)
    ):
        setattr(made, _ATTRIBUTE, Recipe(made, make, inputs))
    return made


def instead_of(input: torch.Tensor) -> AbstractContextManager[Any]:
    """Within, nodes of the graph keep the recipe of `input`, if it has one, in its place."""
    recipe = None if torch.compiler.is_compiling() else getattr(input, _ATTRIBUTE, None)
    if recipe is None or has_saved_tensors_hooks() or not recipe.stands_for(input):
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(recipe.pack, recipe.unpack)
