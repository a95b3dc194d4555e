"""What a module's forward depends on, noted when ours takes its place and compared at every call.

Activations get replaced, hooks get registered and dropout gets switched on after a model was
patched. Whatever a module's own forward would do differently then, ours must not hide.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llama_fast._torch_internals import has_global_hooks, has_hooks, is_fake

_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype)


@dataclass(frozen=True)
class Watch:
    """The state of one module that its forward reads.

    Attributes:
        forward: the function `forward` of the module's class.
        values: (name, value) of attributes: numbers, flags, functions.
        settings: (name, attribute, value) of attributes of other objects, as configurations.
        parts: (name, state) of child modules that our forward does not call.
    """

    forward: Any
    values: tuple[tuple[str, Any], ...]
    settings: tuple[tuple[str, str, Any], ...]
    parts: tuple[tuple[str, Watch], ...]

    def holds(self, module: Any) -> bool:
        """Whether `module`, its hooks apart, would still do what it did."""
        if type(module).forward is not self.forward:
            return False
        for name, value in self.values:
            if not _same(getattr(module, name, None), value):
                return False
        for name, attribute, value in self.settings:
            if not _same(getattr(getattr(module, name, None), attribute, None), value):
                return False
        for name, watch in self.parts:
            part = module._modules.get(name)
            if part is None or is_hooked(part) or not watch.holds(part):
                return False
        return True


def state_of(module: nn.Module, without: tuple[str, ...] = ()) -> Watch:
    """What `module` depends on now, attributes and children named in `without` apart."""
    kind = _kind(module)
    values, settings = [], []
    for name in sorted(_names_read(kind) - {"training", *without}):
        held = name in vars(module)
        if not held and isinstance(
            inspect.getattr_static(kind, name, None), (property, types.NoneType)
        ):
            continue
        value = getattr(module, name)
        if isinstance(value, _SCALARS) or (callable(value) and held):
            values.append((name, value))
        elif held and not isinstance(value, torch.Tensor):
            for attribute in sorted(_names_read(kind)):
                found = getattr(value, attribute, None)
                if found is not None and isinstance(found, _SCALARS):
                    settings.append((name, attribute, found))
    parts = [(n, state_of(m)) for n, m in module.named_children() if n not in without]
    return Watch(kind.forward, tuple(values), tuple(settings), tuple(parts))


def likeness(module: nn.Module) -> Hashable | None:
    """The same for modules that do the same but for the numbers in their weights; None: unknown."""
    if next(module.buffers(), None) is not None:
        return None
    objects = [
        id(vars(m)[name])
        for m in module.modules()
        for name in sorted(_names_read(_kind(m)) & vars(m).keys())
        if not isinstance(vars(m)[name], _SCALARS)
    ]
    key = (
        type(module),
        state_of(module),
        tuple((name, type(m)) for name, m in module.named_modules()),
        tuple((name, p.shape, p.dtype) for name, p in module.named_parameters()),
        tuple(objects),
    )
    try:
        hash(key)
    except TypeError:
        return None
    return key


def is_hooked(module: nn.Module) -> bool:
    """Whether `module` has hooks, or somebody has put another forward in its place."""
    return has_hooks(module) or "forward" in vars(module)


def is_everything_hooked() -> bool:
    """Whether somebody is told of the calls of all modules."""
    return not torch.compiler.is_compiling() and has_global_hooks()


def is_plain(x: Any) -> bool:
    """Whether `x` is a tensor that our kernels read: no DTensor, none of another subclass."""
    if type(x) in (torch.Tensor, nn.Parameter):
        return True
    return isinstance(x, torch.Tensor) and is_fake(x)


def _kind(module: nn.Module) -> Any:
    return type(module)


def _same(found: Any, value: Any) -> bool:
    return found is value or (type(found) is type(value) and found == value)


@functools.cache
def _names_read(kind: Any) -> frozenset[str]:
    """Names that the forward of a class reads, and the methods that it may call."""
    names: set[str] = set()
    pending = ["forward"]
    while pending:
        method = getattr(kind, pending.pop(), None)
        method = method.fget if isinstance(method, property) else method
        code = getattr(inspect.unwrap(method) if callable(method) else None, "__code__", None)
        for name in set(_names(code)) - names if code is not None else ():
            names.add(name)
            if isinstance(inspect.getattr_static(kind, name, None), (types.FunctionType, property)):
                pending.append(name)
    return frozenset(name for name in names if not name.startswith("__"))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
