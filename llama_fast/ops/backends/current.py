"""The backend requested for each op in this thread or asyncio task: the state of `use_backend`.

It is separate from choice.py because triton.py reads it, and choice.py imports triton.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from llama_fast.ops.backends.table import OPS

# The choice in LLAMA_FAST_BACKEND, set when choice.py is imported. The dictionaries in the context
# variable are never modified.
DEFAULT = dict.fromkeys(OPS, "auto")
_chosen: ContextVar[dict[str, str]] = ContextVar("llama_fast_backends", default=DEFAULT)
# torch.compile can neither trace a context variable nor guard on one, but it can do both with a
# dictionary: the choice of the block that the process entered last and has not left.
_traced = dict(DEFAULT)
_entered: list[dict[str, str]] = []
_lock = threading.Lock()


def set_default(choice: dict[str, str]) -> None:
    """Set the choice used outside of all `with` blocks."""
    DEFAULT.update(choice)
    _traced.update(choice)


@contextmanager
def entered(choice: dict[str, str]) -> Iterator[None]:
    """Within the block, use `choice` for the ops in it; the other ops keep their choice."""
    mine = {**_chosen.get(), **choice}
    token = _chosen.set(mine)
    with _lock:
        _entered.append(mine)
        _traced.update(mine)
    try:
        yield
    finally:
        _chosen.reset(token)
        with _lock:
            _entered[:] = [other for other in _entered if other is not mine]
            _traced.update(_entered[-1] if _entered else DEFAULT)


def current() -> dict[str, str]:
    """The requested backend by op, to be passed to `in_force`. Not under torch.compile."""
    return _chosen.get()


@contextmanager
def in_force(choice: dict[str, str]) -> Iterator[None]:
    """Within the block, use `choice`, an earlier result of `current`: for backward passes."""
    token = _chosen.set(choice)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen(op: str) -> str:
    """The backend requested for `op`, which may be "auto"."""
    return _traced[op] if torch.compiler.is_compiling() else _chosen.get()[op]
