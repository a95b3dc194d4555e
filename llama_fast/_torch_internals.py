"""All uses of torch's private functions.

Any release of torch may move or change names that begin with an underscore. Then
tests/test_torch_internals.py fails and names the missing one, and the function here that needs it
raises an error that names it, too. The functions may be called under torch.compile unless their
docstring says otherwise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# The private names in use, as paths from `torch`, and whether this torch has them.
NAMES: dict[str, bool] = {}


def _private(path: str) -> Any:
    """torch's object at `path`, or a function that raises an error naming it if there is none."""
    try:
        found = operator.attrgetter(path)(torch)
    except AttributeError:
        NAMES[path] = False

        def missing(*args: Any) -> Any:
            raise NotImplementedError(f"torch {torch.__version__} has no torch.{path}")

        return missing
    NAMES[path] = True
    return found


_is_tracing = _private("_C._is_tracing")
_dispatch_stack_size = _private("_C._len_torch_dispatch_stack")
_get_dispatch_mode = _private("_C._get_dispatch_mode")
_transforms_active = _private("_C._are_functorch_transforms_active")
_interpreter_stack = _private("_C._functorch.get_interpreter_stack")
_innermost_interpreter = _private("_C._functorch.peek_interpreter_stack")
_is_wrapped = _private("_C._functorch.is_functorch_wrapped_tensor")
_is_grad_wrapper = _private("_C._functorch.is_gradtrackingtensor")
_is_legacy_batched = _private("_C._functorch.is_legacy_batchedtensor")
_unwrapped = _private("_C._functorch.get_unwrapped")
_BelowAutograd = _private("_C._AutoDispatchBelowAutograd")
_keeps_graph = _private("_C._autograd._get_current_graph_task_keep_graph")
_top_hooks = _private("_C._autograd._top_saved_tensors_default_hooks")
_has_kernel = _private("_C._dispatch_has_kernel_for_dispatch_key")
_disabled_torch_function = _private("_C._disabled_torch_function_impl")
_torch_function_enabled = _private("_C._is_torch_function_enabled")
_GRAD = _private("_C._functorch.TransformType.Grad")
_VALUELESS_MODES = tuple(
    _private(f"_C._TorchDispatchModeKey.{key}") for key in ("PROXY", "FAKE", "FUNCTIONAL")
)
# The base classes of torch.nn's dropout modules and of its batch and instance norms.
DropoutModule = _private("nn.modules.dropout._DropoutNd")
BatchNormModule = _private("nn.modules.batchnorm._NormBase")
# Variables, which must be read at each use.
_private("autograd.forward_ad._current_level")
for _name in ("forward", "forward_pre", "backward", "backward_pre"):
    _private(f"nn.modules.module._global_{_name}_hooks")


# --- who watches a call ----------------------------------------------------------------------


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace records what is called. Not under torch.compile."""
    return _is_tracing()


def has_dispatch_mode() -> bool:
    """Whether a `TorchDispatchMode` sees every operator, make_fx's or a user's for example."""
    return _dispatch_stack_size() > 0


def hides_values() -> bool:
    """Whether a mode is active under which tensors have no values: make_fx, fake tensors.

    Not to be called under torch.compile, where tensors have no values even without a mode.
    """
    return any(_get_dispatch_mode(key) is not None for key in _VALUELESS_MODES)


def has_torch_function(overriding: object) -> bool:
    """Whether `overriding`, a `__torch_function__` method, has an effect: it is not disabled."""
    return overriding is not _disabled_torch_function and _torch_function_enabled()


# --- torch.func and forward-mode derivatives -------------------------------------------------


def in_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is active."""
    return _transforms_active()


def transform_depth() -> int:
    """The number of nested active transforms of torch.func. Not under torch.compile."""
    return len(_interpreter_stack()) if _transforms_active() else 0


def in_transform_other_than_grad() -> bool:
    """Whether an active transform of torch.func is not `grad` or `vjp`. Not under torch.compile."""
    return _transforms_active() and any(level.key() != _GRAD for level in _interpreter_stack())


def in_forward_ad() -> bool:
    """Whether forward-mode derivatives are being computed."""
    return torch.autograd.forward_ad._current_level >= 0


def is_wrapped(t: torch.Tensor) -> bool:
    """Whether `t` is a tensor that a transform of torch.func made. Not under torch.compile."""
    return _is_wrapped(t)


def without_grad_wrapper(t: torch.Tensor) -> torch.Tensor:
    """The tensor inside `t` if that is a wrapper of torch.func.grad. Not under torch.compile."""
    return _unwrapped(t) if _is_grad_wrapper(t) else t


def is_batch_of_gradients(t: torch.Tensor) -> bool:
    """Whether `t` comes from `torch.autograd.grad(is_grads_batched=True)`."""
    return _is_legacy_batched(t)


# --- autograd --------------------------------------------------------------------------------


def keeps_graph() -> bool:
    """Whether the current backward pass was called with `retain_graph=True`."""
    return _keeps_graph()


def has_saved_tensors_hooks() -> bool:
    """Whether `saved_tensors_hooks` are active, those of activation checkpointing for example."""
    return _top_hooks(True) is not None


def view_base(t: torch.Tensor) -> torch.Tensor:
    """The tensor that `t` is a view of, or `t` itself if it is not a view."""
    return t if t._base is None else t._base


def below_autograd(overload: Any) -> Callable[..., Any]:
    """A function that calls an operator without its autograd rule.

    `overload` is ``torch.ops.<namespace>.<name>.default``. Its Python wrapper, which takes a
    microsecond per call, is skipped.
    """
    kernel = overload._op

    def call(*args: Any) -> Any:
        with _BelowAutograd():
            return kernel(*args)

    return call


# --- operators, modules, process groups ------------------------------------------------------


def has_kernel(name: str, key: str) -> bool:
    """Whether operator ``<namespace>::<name>`` has a kernel for a dispatch key, such as "CPU"."""
    return _has_kernel(name, key)


def has_hooks(module: nn.Module) -> bool:
    """Whether `module` itself has hooks, forward or backward."""
    return any(_hooks(module))


def clear_hooks(module: nn.Module) -> None:
    """Remove all hooks from `module`, forward and backward."""
    for hooks in _hooks(module):
        hooks.clear()


def forward_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """The forward hooks of `module`, including forward pre-hooks."""
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _hooks(module: nn.Module) -> tuple[dict[int, Callable[..., Any]], ...]:
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def has_global_hooks() -> bool:
    """Whether there are hooks for all modules, forward or backward."""
    return has_global_forward_hooks() or bool(
        nn.modules.module._global_backward_hooks or nn.modules.module._global_backward_pre_hooks
    )


def has_global_forward_hooks() -> bool:
    """Whether there are forward hooks for all modules."""
    return bool(
        nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    )


def is_fake(t: torch.Tensor) -> bool:
    """Whether `t` is of a subclass that torch's own tracing uses (a fake or functional tensor)."""
    return type(t).__module__.startswith("torch._subclasses.")


def process_group(name: str) -> torch.distributed.ProcessGroup:
    """The process group whose `group_name` is `name`."""
    return torch.distributed.distributed_c10d._resolve_process_group(name)
