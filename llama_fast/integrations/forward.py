"""Our forward as an attribute of a module's instance, which takes precedence over its class.

Other libraries set such attributes too, before or after us, and remove them in any order. So ours
looks like the bound method that it replaces (`__func__`, `__signature__`, `__wrapped__`), and is
recognised under any attribute name under which another library saves it.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn


class _Function(functools.partial):
    """One of our functions of (module, ...).

    Attributes:
        before: the forward that the instance had before; None if it used the class's.
    """

    before: Callable[..., Any] | None


class Forward(_Function):
    """Such a function bound to its module; copied and pickled together with it."""

    @property
    def __func__(self) -> _Function:
        """As of a bound method: libraries wrap it and bind it again, perhaps to a copied module."""
        function = _Function(self.func, *self.args[1:], **self.keywords)
        function.before = self.before
        vars(function)["__signature__"] = _signature(type(self.args[0]).forward)
        return function

    @property
    def __globals__(self) -> dict[str, Any]:
        """Raises: only `torch.jit.script` asks for it without a default."""
        raise AttributeError(
            "torch.jit.script cannot compile a patched model: llama_fast.unpatch(model) first, or "
            "use torch.jit.trace, torch.compile or torch.export"
        )

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The forward of another library that ours replaced."""
        if self.before is None:
            raise AttributeError("__wrapped__")
        return self.before


def replace(module: nn.Module, function: Callable[..., Any]) -> None:
    """Make `function` (module, ...) the forward of a module until :func:`restore`."""
    ours = Forward(function, module)
    before = vars(module).get("forward")
    current = _as_ours(before)  # may be one of ours
    ours.before = before if current is None else current.before
    # generate() and Trainer read the arguments that a model accepts from its signature.
    signature = _signature(type(module).forward)
    vars(ours)["__signature__"] = signature.replace(
        parameters=list(signature.parameters.values())[1:]
    )
    module.forward = ours


def restore(module: nn.Module) -> None:
    """Remove our forward from a module, if it has one."""
    for name, value in list(vars(module).items()):
        current = _as_ours(value)
        if current is None:
            continue
        # Other libraries save the forward that they replaced under another attribute.
        if current.before is not None:
            setattr(module, name, current.before)
        elif name == "forward":
            del module.forward
        else:
            setattr(module, name, type(module).forward.__get__(module))


def is_foreign(module: nn.Module) -> bool:
    """Whether something else has replaced the forward of a module's instance.

    Not where the attribute is the forward of its class: the Hub's `kernels` package sets that in
    layers for which it has no kernel.
    """
    value = vars(module).get("forward")
    if value is None or _as_ours(value) is not None or is_kernel(module):
        return False
    return getattr(value, "__func__", None) is not type(module).forward


def is_kernel(module: nn.Module) -> bool:
    """Whether the `kernels` package has set the forward of one of our layers."""
    value = vars(module).get("forward")
    owner = getattr(getattr(value, "__func__", None), "__module__", None)
    return owner == f"{__package__}.hub_kernels.layers"


def _as_ours(value: Any) -> _Function | None:
    """`value`, or the function that it binds, if that is ours.

    Tested by type: wrappers of other libraries may copy our attributes.
    """
    value = value.__func__ if isinstance(value, types.MethodType) else value
    return value if isinstance(value, _Function) else None


@functools.cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Signature of a class's forward, without annotations, which may not be picklable."""
    parameters = inspect.signature(forward).parameters.values()
    return inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
