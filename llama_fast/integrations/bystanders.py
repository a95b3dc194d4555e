"""Whether code of others may write to a tensor between two modules without anybody noticing.

In-place operations raise a tensor's version. Writes through `.data` or NumPy do not; stock autograd
keeps the tensor itself, so it does not have to notice them. Whoever keeps something else in its
place asks here first. Such writes come from hooks (steering, ablation) and, rarely, from a model's
own forward, or from whoever calls its modules one by one.
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

_TRUSTED = ("torch.", "transformers.", "llama_fast.")  # their hooks gather weights, record outputs
_PAST_THE_VERSION = {
    "data",
    "numpy",
    "untyped_storage",
    "storage",
    "data_ptr",
    "from_dlpack",
    "__dlpack__",
}

# A module -> the model that it was patched in. Beside the modules: copies of them know nothing.
_models: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Module]] = weakref.WeakKeyDictionary()
# A model without such code -> how many hooks there had ever been then, the code of its forwards.
_alone: weakref.WeakKeyDictionary[nn.Module, tuple[int, frozenset[int]]]
_alone = weakref.WeakKeyDictionary()
_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def watch(model: nn.Module) -> None:
    """Know that the modules of `model` hand their outputs to each other."""
    reference = weakref.ref(model)
    for module in model.modules():
        _models[module] = reference


def may_write(module: nn.Module, within: bool = False) -> bool:
    """Whether code of others may write to a tensor that `module` makes, unnoticed.

    Args:
        module: of a model that :func:`watch` was told of; else the answer is True.
        within: the tensor goes to a module inside of `module`; else to the module, or to the code,
            that called `module`.
    """
    reference = _models.get(module)
    model = None if reference is None else reference()
    if model is None:
        return True
    if has_global_forward_hooks():
        return True
    ever = RemovableHandle.next_id  # of hooks of all kinds
    found = _alone.get(model)
    if found is None or found[0] != ever:
        if any(_hooked(m) or _forward_writes(m) for m in model.modules()):
            return True
        codes = frozenset(id(c) for m in model.modules() for c in _codes(type(m).forward))
        found = _alone[model] = ever, codes
    return not within and not _called_by_model(model, found[1])


def _called_by_model(model: nn.Module, codes: frozenset[int]) -> bool:
    """Whether the forward of a module of `model` is running, and all that it called is harmless."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if id(code) in codes and code.co_varnames:
            reference = _models.get(frame.f_locals.get(code.co_varnames[0]))
            if reference is not None and reference() is model:
                return True
        if not code.co_filename.startswith(_OURS) and _names(code):
            return False
        frame = frame.f_back
    return False


def _hooked(module: nn.Module) -> bool:
    return any(
        not (getattr(hook, "__module__", None) or "").startswith(_TRUSTED)
        for hook in forward_hooks(module)
    )


def _forward_writes(module: nn.Module) -> bool:
    """Whether its forward takes a tensor's memory by one of the ways past its version."""
    own = vars(module).get("forward")  # of another library, or ours
    own = None if isinstance(own, forward.Forward) else getattr(own, "__func__", own)
    if own is not None and _takes_memory(own):
        return True
    kind = type(module)
    return not kind.__module__.startswith("torch.") and _takes_memory(kind.forward)


@functools.lru_cache(maxsize=4096)
def _takes_memory(function: Callable[..., Any]) -> bool:
    """Whether the code of a function says so, or that of what it wraps; True without code."""
    codes = _codes(function)
    return not codes or any(map(_names, codes))


def _codes(function: Any) -> list[types.CodeType]:
    """The code of a function and of the functions that it wraps."""
    found = []
    while function is not None:
        if isinstance(function, functools.partial):
            function = function.func
        if hasattr(function, "__code__"):
            found.append(function.__code__)
        function = getattr(function, "__wrapped__", None)
    return found


def _names(code: types.CodeType) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return not _PAST_THE_VERSION.isdisjoint(code.co_names) or any(map(_names, inner))
