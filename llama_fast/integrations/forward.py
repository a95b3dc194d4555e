"""A forward of ours on a module's instance, in front of its class.

Other libraries put theirs there too, before us or after us, and take them away again in any order.
So ours looks like the bound method that it stands for (`__func__`, `__signature__`, `__wrapped__`),
and is found again under whatever name they keep it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn


class _Function(functools.partial):
    """A function of (module, ...) that is one of ours.

    Attributes:
        before: the forward that the instance had before; None where it was the class's.
    """

    before: Callable[..., Any] | None


class Forward(_Function):
    """A function of (module, ...) and its module; copied and pickled together with it."""

    @property
    def __func__(self) -> _Function:
        """As a bound method's: libraries wrap it and bind it again, to a copy of the module too."""
        function = _Function(self.func, *self.args[1:], **self.keywords)
        function.before = self.before
        vars(function)["__signature__"] = _signature(type(self.args[0]).forward)
        return function

    @property
    def __globals__(self) -> dict[str, Any]:
        """What `torch.jit.script` asks for first; nothing else does without a default."""
        raise AttributeError(
            "torch.jit.script cannot compile a patched model: llama_fast.unpatch(model) first, or "
            "use torch.jit.trace, torch.compile or torch.export"
        )

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """Another library's forward, whoever unwraps the module of it."""
        if self.before is None:
            raise AttributeError("__wrapped__")
        return self.before


def replace(module: nn.Module, function: Callable[..., Any]) -> None:
    """Have `function` (module, ...) serve for a module until :func:`restore`."""
    ours = Forward(function, module)
    before = vars(module).get("forward")
    found = _ours(before)  # one of ours may be there already
    ours.before = before if found is None else found.before
    # generate() and Trainer look there for what they may give to a model.
    signature = _signature(type(module).forward)
    vars(ours)["__signature__"] = signature.replace(
        parameters=list(signature.parameters.values())[1:]
    )
    module.forward = ours


def restore(module: nn.Module) -> None:
    """Take our forward away; nothing happens to a module without."""
    for name, value in list(vars(module).items()):
        found = _ours(value)
        if found is None:
            continue
        # Hooks of other libraries keep the forward that they found under a name of theirs.
        if found.before is not None:
            setattr(module, name, found.before)
        elif name == "forward":
            del module.forward
        else:
            setattr(module, name, type(module).forward.__get__(module))


def _ours(value: Any) -> _Function | None:
    """`value`, or what it binds, if that is ours.

    A wrapper of another library may have copied our attributes, so these tell nothing.
    """
    value = value.__func__ if isinstance(value, types.MethodType) else value
    return value if isinstance(value, _Function) else None


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Of a module's class's forward, without types, which may not be picklable."""
    parameters = inspect.signature(forward).parameters.values()
    return inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
