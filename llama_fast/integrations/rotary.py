"""Rotary positions in attention layers: a layer's forward that calls our function instead of its.

transformers' attention layers call a function of their file that turns queries and keys. A layer
gets a forward with the same code, in whose globals that name stands for ours. File, class and all
other layers stay as they are.
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
from llama_fast.integrations import watch
from llama_fast.integrations.probe import AGREEMENT, same_draws
from llama_fast.integrations.structure import called_functions
from llama_fast.ops.rope import rope

_FIRST = ["q", "k", "cos", "sin"]
_KNOWN = ((False, "halves"), (False, "once"), (True, "halves"), (True, "pairs"), (True, "once"))
# forward functions with our rotation, by the function that they are made from
_REWIRED: dict[Any, Callable[..., Any]] = {}


class Style(NamedTuple):
    """How a function turns queries and keys.

    Attributes:
        interleaved: as in `llama_fast.rope`.
        tables: how the tables hold the numbers: all of them, then all again ("halves"), each twice
            in a row ("pairs"), or each "once".
        partial: whether numbers of a head beyond the tables' width pass as they are.
    """

    interleaved: bool
    tables: str
    partial: bool

    def narrow(self, table: torch.Tensor) -> torch.Tensor:
        """Each number of a table once."""
        if self.tables == "pairs":
            return table[..., ::2]
        return table if self.tables == "once" else table[..., : table.shape[-1] // 2]

    def wide(self, table: torch.Tensor) -> torch.Tensor:
        """The table as the function has it, of each number once."""
        if self.tables == "pairs":
            return table.repeat_interleave(2, -1)
        return table if self.tables == "once" else torch.cat((table, table), -1)


def rotation_of(module: nn.Module) -> tuple[str, Style] | str | None:
    """(name, style) of the function by which a layer turns queries and keys.

    A reason where it does so in a way of its own; None where it turns nothing.
    """
    reasons = []
    for name, function in called_functions(module):
        try:
            arguments = list(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            continue
        if arguments[:4] != _FIRST:
            if "rotary" in name and len(arguments) > 1:
                reasons.append(f"{name}: it takes {', '.join(arguments)}")
            continue
        found = _style(function)
        if isinstance(found, Style):
            if not _can_be_rewired(type(module).forward):
                return "its forward is wrapped in a decorator of an unknown kind"
            return name, found
        reasons.append(f"{name}: {found}")
    return "; ".join(reasons) or None


@functools.cache
def _style(function: Callable[..., Any]) -> Style | str:
    """How a function of (q, k, cos, sin) works, or why ours cannot take its place."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    cos, sin = random(2, 5, 4), random(2, 5, 4)
    failures: list[str] = []
    for interleaved, tables in _KNOWN:
        agree = []
        for width in (8, 12):  # of heads: as the tables', and wider
            q, k = random(2, 3, 5, width), random(2, 1, 5, width)
            style = Style(interleaved, tables, width > 8)
            try:
                with same_draws() as drawn:
                    before = drawn()
                    got = function(q, k, style.wide(cos), style.wide(sin))
                    if drawn() != before:
                        return "it draws random numbers"
            except Exception as error:  # whatever it says to arguments that it does not know
                failures.append(f"{type(error).__name__}: {error}")
                break
            want = _turn(q, k, cos, sin, style, reference.rope)
            if len(got) != 2 or not all(map(_agree, got, want)):
                break
            agree.append(style)
        if agree:
            return agree[-1]
    if len(failures) == len(_KNOWN):
        return f"it failed on random input: {failures[0]}"
    return "it turns queries and keys in another way"


def _agree(got: torch.Tensor, want: torch.Tensor) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() <= AGREEMENT)


def tables_fit(module: nn.Module, style: Style) -> bool:
    """Whether a module with rotary frequencies gives tables as a function's style has them."""
    buffer = next(module.buffers())
    x = torch.zeros(1, 3, 4, device=buffer.device)
    positions = torch.arange(1, 4, device=buffer.device)[None]
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    config = getattr(module, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ()) if "layer_type" in names else {None}
    for kind in kinds:
        try:
            tables = module(x, positions, **({} if kind is None else {"layer_type": kind}))
        except Exception:  # a module of another kind
            return False
        if len(tables) != 2:
            return False
        for table in tables:
            if not isinstance(table, torch.Tensor) or table.dim() != 3:
                return False
            if style.tables != "once" and table.shape[-1] % 2:
                return False
            if not torch.equal(style.wide(style.narrow(table)), table):
                return False
    return bool(kinds)


def attention_forward(
    module: nn.Module, *args: Any, _name: str, _style: Style, **kwargs: Any
) -> Any:
    """The forward of a layer's class, turning queries and keys by our kernel."""
    original: Any = type(module).forward
    ours = rewired(original, _name, _style)
    if not torch.compiler.is_compiling() and not _follows(ours, original, _name):
        ours = original
    return ours(module, *args, **kwargs)


def _follows(ours: Any, original: Any, name: str) -> bool:
    """Whether the file of `original` still has the function that ours stands for.

    Other globals that were replaced in that file since are taken over.
    """
    inner = getattr(original, "__wrapped__", None)
    theirs, scope = original.__globals__, ours.__globals__
    for each in original.__code__.co_names:
        if each in theirs and (inner is not None or each != name):
            scope[each] = theirs[each]
    if inner is not None:
        return _follows(_REWIRED[inner, name], inner, name)
    return theirs.get(name) is scope[name].__wrapped__


def rewired(original: Any, name: str, style: Style) -> Callable[..., Any]:
    """The function `original` with ours under the global name `name`; made once.

    Of a decorated function: the same decorators around such a function.
    """
    key = (original, name)
    if key not in _REWIRED:
        scope, closure = dict(original.__globals__), original.__closure__
        # A module's name would have torch.compile look names up in that module.
        scope.pop("__name__", None)
        inner = getattr(original, "__wrapped__", None)
        if inner is None:
            scope[name] = _with_ours(scope[name], style)
        else:
            made_inner = types.CellType(rewired(inner, name, style))
            closure = tuple(made_inner if _holds(c, inner) else c for c in closure)
        made = types.FunctionType(
            original.__code__, scope, original.__name__, original.__defaults__, closure
        )
        made.__kwdefaults__ = original.__kwdefaults__
        _REWIRED[key] = made
    return _REWIRED[key]


def _can_be_rewired(forward: Any) -> bool:
    """Whether it is a function, or one within decorators that are plain closures over it."""
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
    except ValueError:  # a cell that is empty yet
        return False


def _with_ours(theirs: Callable[..., Any], style: Style) -> Callable[..., Any]:
    """`theirs`, done by our kernel where the arguments are as usual."""

    def rotate(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *args: Any,
        **kw: Any,
    ) -> Any:
        turned = cos.shape[-1] * (2 if style.tables == "once" else 1)
        if not (
            not args
            and kw.get("unsqueeze_dim", 1) == 1
            and all(map(watch.is_plain, (q, k, cos, sin)))
            and q.dim() == 4
            and cos.dim() == 3
            and cos.shape[0] in (1, q.shape[0])
            and (turned == q.shape[-1] or (style.partial and turned < q.shape[-1]))
            and (q.shape[2:], q.dtype) == (k.shape[2:], k.dtype)
            and not cos.requires_grad
        ):
            return theirs(q, k, cos, sin, *args, **kw)
        cos, sin = style.narrow(cos), style.narrow(sin)
        if cos.shape[0] != q.shape[0]:
            cos, sin = cos[0], sin[0]
        return _turn(q, k, cos, sin, style, rope)

    vars(rotate)["__wrapped__"] = theirs
    return rotate


def _turn(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, style: Style, by: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys turned `by` a function like `llama_fast.rope`."""
    turned = 2 * cos.shape[-1]
    if turned == q.shape[-1]:
        a, b = by(q, k, cos, sin, interleaved=style.interleaved)
        return a, b
    a, b = by(q[..., :turned], k[..., :turned], cos, sin, interleaved=style.interleaved)
    return torch.cat((a, q[..., turned:]), -1), torch.cat((b, k[..., turned:]), -1)
