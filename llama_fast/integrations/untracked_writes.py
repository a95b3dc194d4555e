"""Tells whether a tensor that one module passes to another may be written to without a trace.

In-place operations increase a tensor's version counter. Writes through `.data` or a NumPy array do
not. Stock autograd saves the tensor itself and is not affected by them; code that saves something
else in its place asks this module first. Such writes come from hooks (steering, ablation) and,
rarely, from a model's own forward or from code that calls a model's modules one by one.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from llama_fast._torch_internals import forward_hooks, has_global_forward_hooks
from llama_fast.integrations import forward

_TRUSTED = (
    "torch.",
    "transformers.",
    "llama_fast.",
)  # their hooks only gather weights or record outputs
_UNTRACKED_ACCESS = {
    "data",
    "numpy",
    "untyped_storage",
    "storage",
    "data_ptr",
    "from_dlpack",
    "__dlpack__",
}

# A module -> the model that it was patched in. Not an attribute, which copies would inherit.
_models: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()
# A model without such code -> the number of hooks ever registered when it was checked, and the ids
# of the code objects of its forwards.
_checked: weakref.WeakKeyDictionary[nn.Module, tuple[int, frozenset[int]]]
_checked = weakref.WeakKeyDictionary()
_TRUSTED_PATHS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def register_model(model: nn.Module) -> None:
    """Record that the modules of `model` pass their outputs to each other."""
    reference = weakref.ref(model)
    for module in model.modules():
        _models[module] = reference


def may_write(module: nn.Module, within: bool = False) -> bool:
    """Whether code outside this package may write to an output of `module` without a trace.

    Args:
        module: a module of a model passed to :func:`register_model`; True for all others.
        within: whether the tensor goes to a child of `module` rather than to its caller.
    """
    reference = _models.get(module)
    model = None if reference is None else reference()
    if model is None:
        return True
    if has_global_forward_hooks():
        return True
    hook_count = RemovableHandle.next_id  # every hook of any kind takes one id
    checked = _checked.get(model)
    if checked is None or checked[0] != hook_count:
        if any(_has_foreign_hooks(m) or _forward_may_write(m) for m in model.modules()):
            return True
        codes = frozenset(id(c) for m in model.modules() for c in _codes(type(m).forward))
        checked = _checked[model] = hook_count, codes
    return not within and not _called_by_model(model, checked[1])


def _called_by_model(model: nn.Module, codes: frozenset[int]) -> bool:
    """Whether a forward of `model` is on the stack and no frame above it accesses memory."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if id(code) in codes and code.co_varnames:
            reference = _models.get(frame.f_locals.get(code.co_varnames[0]))
            if reference is not None and reference() is model:
                return True
        if not code.co_filename.startswith(_TRUSTED_PATHS) and _names_untracked_access(code):
            return False
        frame = frame.f_back
    return False


def _has_foreign_hooks(module: nn.Module) -> bool:
    return any(
        not (getattr(hook, "__module__", None) or "").startswith(_TRUSTED)
        for hook in forward_hooks(module)
    )


def _forward_may_write(module: nn.Module) -> bool:
    """Whether its forward accesses a tensor's memory in a way that leaves the version as it is."""
    own = vars(module).get("forward")  # set by another library, or by us
    own = None if isinstance(own, forward.Forward) else getattr(own, "__func__", own)
    if own is not None and _accesses_memory(own):
        return True
    cls = type(module)
    return not cls.__module__.startswith("torch.") and _accesses_memory(cls.forward)


@functools.lru_cache(maxsize=4096)
def _accesses_memory(function: Callable[..., Any]) -> bool:
    """Whether the code of a function, or of one that it wraps, does so; True if it has no code."""
    codes = _codes(function)
    return not codes or any(map(_names_untracked_access, codes))


def _codes(function: Any) -> list[types.CodeType]:
    """The code of a function and of the functions that it wraps."""
    codes = []
    while function is not None:
        if isinstance(function, functools.partial):
            function = function.func
        if hasattr(function, "__code__"):
            codes.append(function.__code__)
        function = getattr(function, "__wrapped__", None)
    return codes


def _names_untracked_access(code: types.CodeType) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    own = not _UNTRACKED_ACCESS.isdisjoint(code.co_names)
    return own or any(map(_names_untracked_access, inner))
