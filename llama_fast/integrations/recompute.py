"""Inputs of linear layers that the backward pass recomputes instead of saving.

The output of a norm or of a gated product is cheap to compute (one pass over memory) and takes as
much memory to save as its inputs, which are saved anyway. Such an output carries a :class:`Recipe`,
and a linear layer saves the recipe in its place. `torch.utils.checkpoint` does the same for whole
layers, at the price of their matrix products.

A recipe describes the tensor as it was computed from the inputs as they were. If the tensor was
changed in place, the linear layer saves the tensor; if an input was changed before the backward
pass, that is an error. A tensor that may be written to without a trace gets no recipe
(:mod:`untracked_writes`).
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
from llama_fast.integrations import untracked_writes
from llama_fast.ops._autocast import without_autocast

_ATTRIBUTE = "_llama_fast_recipe"


class Recipe:
    """How to compute a tensor again.

    Args:
        output: the tensor.
        function: ``function(*inputs)`` equals `output` bit for bit.
        inputs: tensors. Vectors are copied: FSDP frees the weight of a norm that is wrapped alone.
    """

    def __init__(
        self, output: torch.Tensor, function: Callable[..., torch.Tensor], inputs: tuple[Any, ...]
    ) -> None:
        self._version = output._version
        self._data_ptr = output.untyped_storage().data_ptr()
        self._numel = output.numel()
        self._function = function
        self._inputs = tuple(t.detach().clone() if t.dim() == 1 else t.detach() for t in inputs)
        self._versions = tuple(t._version for t in self._inputs)
        self._num_saved = 0  # nodes that will ask for the tensor
        self._num_unpacked = 0
        self._recomputed: torch.Tensor | None = None

    def describes(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is the whole output, unchanged since it was computed."""
        return (
            tensor._version == self._version
            and tensor.numel() == self._numel
            and tensor.is_contiguous()
            and tensor.untyped_storage().data_ptr() == self._data_ptr
        )

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | torch.Size:
        """What autograd saves for `tensor`: its shape if the recipe describes it."""
        if not self.describes(tensor):
            return tensor
        self._num_saved += 1
        return tensor.shape

    def unpack(self, saved: torch.Tensor | torch.Size) -> torch.Tensor:
        """The tensor that autograd saved; recomputed once for all nodes that use it."""
        if isinstance(saved, torch.Tensor):
            return saved
        if self._recomputed is None:
            if tuple(t._version for t in self._inputs) != self._versions:
                raise RuntimeError(
                    "one of the tensors needed for gradient computation has been modified by an "
                    "inplace operation: the input of a norm or of a gated product"
                )
            with torch.no_grad(), without_autocast(self._inputs[0].device.type):
                self._recomputed = self._function(*self._inputs)
        recomputed = self._recomputed
        self._num_unpacked += 1
        if self._num_unpacked % self._num_saved == 0:
            self._recomputed = None
        return recomputed.view(saved)


def attach_recipe(
    module: nn.Module,
    output: torch.Tensor,
    function: Callable[..., torch.Tensor],
    *inputs: torch.Tensor,
    within: bool = False,
) -> torch.Tensor:
    """`output`, with a recipe attached where a backward pass may use it.

    Args:
        module: the module that computed `output`; see :func:`untracked_writes.may_write`.
        output: a tensor.
        function: ``function(*inputs)`` equals `output` bit for bit.
        *inputs: tensors.
        within: whether `output` goes to a child of `module`.
    """
    if (
        torch.is_grad_enabled()
        and output.requires_grad
        and not torch.compiler.is_compiling()  # the compiler decides what to recompute
        and not is_jit_tracing()
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in (output, *inputs))
        and all(t.dtype == output.dtype for t in inputs)
        and output.is_contiguous()
        and not in_transform()
        and not has_dispatch_mode()
        # Other libraries' hooks, such as those of activation checkpointing, decide what is saved.
        and not has_saved_tensors_hooks()
        and not untracked_writes.may_write(module, within)
    ):
        setattr(output, _ATTRIBUTE, Recipe(output, function, inputs))
    return output


def saving_recipe_of(input: torch.Tensor) -> AbstractContextManager[Any]:
    """A context in which autograd saves the recipe of `input`, if it has one, in its place."""
    recipe = None if torch.compiler.is_compiling() else getattr(input, _ATTRIBUTE, None)
    if recipe is None or has_saved_tensors_hooks() or not recipe.describes(input):
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(recipe.pack, recipe.unpack)
