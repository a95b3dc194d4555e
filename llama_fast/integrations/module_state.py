"""The attributes that a module's forward reads: recorded when ours replaces it, compared per call.

After a model is patched, users replace activations, register hooks or switch dropout on. Where the
module's own forward would then behave differently, ours must not run.
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
class ModuleState:
    """The attributes of one module that its forward reads, and their values.

    Attributes:
        forward: the function `forward` of the module's class.
        values: (name, value) of attributes that are numbers, flags or functions.
        settings: (name, attribute, value) of attributes of other objects, such as configurations.
        parts: (name, state) of child modules that our forward does not call.
    """

    forward: Any
    values: tuple[tuple[str, Any], ...]
    settings: tuple[tuple[str, str, Any], ...]
    parts: tuple[tuple[str, ModuleState], ...]

    def matches(self, module: Any) -> bool:
        """Whether `module` would still compute the same; its own hooks are not considered."""
        if type(module).forward is not self.forward:
            return False
        for name, value in self.values:
            if not _same(getattr(module, name, None), value):
                return False
        for name, attribute, value in self.settings:
            if not _same(getattr(getattr(module, name, None), attribute, None), value):
                return False
        for name, state in self.parts:
            part = module._modules.get(name)
            if part is None or is_hooked(part) or not state.matches(part):
                return False
        return True


def state_of(module: nn.Module, without: tuple[str, ...] = ()) -> ModuleState:
    """What the forward of `module` depends on now, except attributes and children in `without`."""
    cls: Any = type(module)
    values, settings = [], []
    for name in sorted(_names_read(cls) - {"training", *without}):
        on_instance = name in vars(module)
        if not on_instance and isinstance(
            inspect.getattr_static(cls, name, None), (property, types.NoneType)
        ):
            continue
        value = getattr(module, name)
        if isinstance(value, _SCALARS) or (callable(value) and on_instance):
            values.append((name, value))
        elif on_instance and not isinstance(value, torch.Tensor):
            for attribute in sorted(_names_read(cls)):
                current = getattr(value, attribute, None)
                if current is not None and isinstance(current, _SCALARS):
                    settings.append((name, attribute, current))
    parts = [(n, state_of(m)) for n, m in module.named_children() if n not in without]
    return ModuleState(cls.forward, tuple(values), tuple(settings), tuple(parts))


def structure_key(module: nn.Module) -> Hashable | None:
    """A key that is equal for modules that differ in their weights only; None if unknown."""
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
    """Whether `module` has hooks, or a forward on the instance other than that of its class."""
    own = vars(module).get("forward")
    foreign = own is not None and getattr(own, "__func__", None) is not type(module).forward
    return has_hooks(module) or foreign


def all_modules_hooked() -> bool:
    """Whether hooks are registered for all modules; False inside torch.compile."""
    return not torch.compiler.is_compiling() and has_global_hooks()


def is_plain(x: Any) -> bool:
    """Whether `x` is a tensor that our kernels can read: not a DTensor or another subclass."""
    if type(x) in (torch.Tensor, nn.Parameter):
        return True
    return isinstance(x, torch.Tensor) and is_fake(x)


def _kind(module: nn.Module) -> Any:
    return type(module)


def _same(current: Any, value: Any) -> bool:
    return current is value or (type(current) is type(value) and current == value)


@functools.cache
def _names_read(cls: Any) -> frozenset[str]:
    """Names that the forward of a class, or a method that it may call, reads."""
    names: set[str] = set()
    pending = ["forward"]
    while pending:
        method = getattr(cls, pending.pop(), None)
        method = method.fget if isinstance(method, property) else method
        code = getattr(inspect.unwrap(method) if callable(method) else None, "__code__", None)
        for name in set(_names(code)) - names if code is not None else ():
            names.add(name)
            if isinstance(inspect.getattr_static(cls, name, None), (types.FunctionType, property)):
                pending.append(name)
    return frozenset(name for name in names if not name.startswith("__"))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
