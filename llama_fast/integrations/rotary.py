"""Rotary embedding in attention layers, by a forward that calls our function.

transformers' attention layers call a function of their module that rotates queries and keys. A
patched layer gets a forward with the same code but other globals, in which the name of that
function refers to ours. Module, class and all other layers are unchanged.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from llama_fast import reference
from llama_fast.integrations import module_state
from llama_fast.integrations.probe import TOLERANCE, fixed_random_state
from llama_fast.integrations.structure import called_functions
from llama_fast.ops.rope import rope

_PARAMETERS = ["q", "k", "cos", "sin"]
_STYLES = ((False, "halves"), (False, "once"), (True, "halves"), (True, "pairs"), (True, "once"))
# (forward function, name of its rotation) -> the same function with ours
_WITH_OUR_ROTATION: dict[Any, Callable[..., Any]] = {}


class RotaryStyle(NamedTuple):
    """How a function rotates queries and keys.

    Attributes:
        interleaved: as in `llama_fast.rope`.
        tables: layout of the cosine and sine tables. "once": one column per frequency; "halves":
            these columns twice, one copy behind the other; "pairs": each column twice in a row.
        partial: whether columns of a head beyond the tables' width are left as they are.
    """

    interleaved: bool
    tables: str
    partial: bool

    def compact(self, table: torch.Tensor) -> torch.Tensor:
        """The table with one column per frequency."""
        if self.tables == "pairs":
            return table[..., ::2]
        return table if self.tables == "once" else table[..., : table.shape[-1] // 2]

    def expand(self, table: torch.Tensor) -> torch.Tensor:
        """The table in this layout, from one column per frequency."""
        if self.tables == "pairs":
            return table.repeat_interleave(2, -1)
        return table if self.tables == "once" else torch.cat((table, table), -1)


def rotation_of(module: nn.Module) -> tuple[str, RotaryStyle] | str | None:
    """(name, style) of the function by which a layer rotates queries and keys.

    A reason if we have no such rotation; None if the layer rotates nothing.
    """
    reasons = []
    for name, function in called_functions(module):
        # The `kernels` package makes modules of functions that it may replace.
        called = function.forward if isinstance(function, nn.Module) else function
        try:
            arguments = list(inspect.signature(called).parameters)
        except (TypeError, ValueError):
            continue
        if arguments[:4] != _PARAMETERS:
            if "rotary" in name and len(arguments) > 1:
                reasons.append(f"{name}: it takes {', '.join(arguments)}")
            continue
        result = _style(function)
        if isinstance(result, RotaryStyle):
            if not _can_be_rebuilt(type(module).forward):
                return "its forward is wrapped in a decorator that cannot be rebuilt"
            return name, result
        reasons.append(f"{name}: {result}")
    return "; ".join(reasons) or None


@functools.cache
def _style(function: Callable[..., Any]) -> RotaryStyle | str:
    """The style of a function of (q, k, cos, sin), or why ours cannot replace it."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    cos, sin = random(2, 5, 4), random(2, 5, 4)
    failures: list[str] = []
    for interleaved, tables in _STYLES:
        agree = []
        for width in (8, 12):  # head size: equal to the tables' width, and larger
            q, k = random(2, 3, 5, width), random(2, 1, 5, width)
            style = RotaryStyle(interleaved, tables, width > 8)
            try:
                with fixed_random_state() as random_state:
                    before = random_state()
                    actual = function(q, k, style.expand(cos), style.expand(sin))
                    if random_state() != before:
                        return "it draws random numbers"
            except Exception as error:  # whatever it raises for such arguments
                failures.append(f"{type(error).__name__}: {error}")
                break
            expected = _rotate(q, k, cos, sin, style, reference.rope)
            if len(actual) != 2 or not all(map(_agree, actual, expected)):
                break
            agree.append(style)
        if agree:
            return agree[-1]
    if len(failures) == len(_STYLES):
        return f"it failed on random input: {failures[0]}"
    return "it rotates queries and keys in another way"


def _agree(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return actual.shape == expected.shape and bool((actual - expected).abs().max() <= TOLERANCE)


def tables_fit(module: nn.Module, style: RotaryStyle) -> bool:
    """Whether the tables of a rotary module have the layout of `style`."""
    buffer = next(module.buffers())
    x = torch.zeros(1, 3, 4, device=buffer.device)
    positions = torch.arange(1, 4, device=buffer.device)[None]
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    config = getattr(module, "config", None)
    layer_types = (
        set(getattr(config, "layer_types", None) or ()) if "layer_type" in names else {None}
    )
    for layer_type in layer_types:
        try:
            tables = module(
                x, positions, **({} if layer_type is None else {"layer_type": layer_type})
            )
        except Exception:  # not a rotary module
            return False
        if len(tables) != 2:
            return False
        for table in tables:
            if not isinstance(table, torch.Tensor) or table.dim() != 3:
                return False
            if style.tables != "once" and table.shape[-1] % 2:
                return False
            if not torch.equal(style.expand(style.compact(table)), table):
                return False
    return bool(layer_types)


def attention_forward(
    module: nn.Module, *args: Any, _name: str, _style: RotaryStyle, **kwargs: Any
) -> Any:
    """The forward of a layer's class, with rotary embedding by our kernel."""
    original: Any = type(module).forward
    ours = with_our_rotation(original, _name, _style)
    if not torch.compiler.is_compiling() and not _sync_globals(ours, original, _name):
        ours = original
    return ours(module, *args, **kwargs)


def _sync_globals(ours: Any, original: Any, name: str) -> bool:
    """Copy the current globals of `original` to ours.

    Returns:
        Whether `name` still refers there to the function that ours replaces.
    """
    inner = getattr(original, "__wrapped__", None)
    theirs, scope = original.__globals__, ours.__globals__
    for each in original.__code__.co_names:
        if each in theirs and (inner is not None or each != name):
            scope[each] = theirs[each]
    if inner is not None:
        return _sync_globals(_WITH_OUR_ROTATION[inner, name], inner, name)
    return theirs.get(name) is scope[name].__wrapped__


def with_our_rotation(original: Any, name: str, style: RotaryStyle) -> Callable[..., Any]:
    """The function `original` with our rotation under the global name `name`; cached.

    A decorated function keeps its decorators.
    """
    key = (original, name)
    if key not in _WITH_OUR_ROTATION:
        scope, closure = dict(original.__globals__), original.__closure__
        # With a module name torch.compile would look globals up in that module.
        scope.pop("__name__", None)
        inner = getattr(original, "__wrapped__", None)
        if inner is None:
            scope[name] = with_kernel(scope[name], style)
        else:
            made_inner = types.CellType(with_our_rotation(inner, name, style))
            closure = tuple(made_inner if _holds(c, inner) else c for c in closure)
        made = types.FunctionType(
            original.__code__, scope, original.__name__, original.__defaults__, closure
        )
        made.__kwdefaults__ = original.__kwdefaults__
        _WITH_OUR_ROTATION[key] = made
    return _WITH_OUR_ROTATION[key]


def _can_be_rebuilt(forward: Any) -> bool:
    """Whether it is a function, perhaps in decorators that are plain closures over it."""
    while isinstance(forward, types.FunctionType):
        inner = getattr(forward, "__wrapped__", None)
        if inner is None:
            return True
        if not any(_holds(cell, inner) for cell in forward.__closure__ or ()):
            return False
        forward = inner
    return False


def _holds(cell: types.CellType, value: Any) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # the cell is empty
        return False


def with_kernel(theirs: Callable[..., Any], style: RotaryStyle) -> Callable[..., Any]:
    """`theirs`, computed by our kernel for arguments of the usual form."""

    def rotate(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *args: Any,
        **kw: Any,
    ) -> Any:
        rotated = cos.shape[-1] * (2 if style.tables == "once" else 1)
        if not (
            not args
            and kw.get("unsqueeze_dim", 1) == 1
            and all(map(module_state.is_plain, (q, k, cos, sin)))
            and q.dim() == 4
            and cos.dim() == 3
            and cos.shape[0] in (1, q.shape[0])
            and (rotated == q.shape[-1] or (style.partial and rotated < q.shape[-1]))
            and (q.shape[2:], q.dtype) == (k.shape[2:], k.dtype)
            and not cos.requires_grad
        ):
            return theirs(q, k, cos, sin, *args, **kw)
        cos, sin = style.compact(cos), style.compact(sin)
        if cos.shape[0] != q.shape[0]:
            cos, sin = cos[0], sin[0]
        return _rotate(q, k, cos, sin, style, rope)

    vars(rotate)["__wrapped__"] = theirs
    return rotate


def _rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    style: RotaryStyle,
    by: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys rotated `by` a function like `llama_fast.rope`."""
    rotated = 2 * cos.shape[-1]
    if rotated == q.shape[-1]:
        a, b = by(q, k, cos, sin, interleaved=style.interleaved)
        return a, b
    a, b = by(q[..., :rotated], k[..., :rotated], cos, sin, interleaved=style.interleaved)
    return torch.cat((a, q[..., rotated:]), -1), torch.cat((b, k[..., rotated:]), -1)
