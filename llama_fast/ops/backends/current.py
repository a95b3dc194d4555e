"""Which backend is asked for, by op, in this thread or asyncio task.

The state behind `use_backend` (choice.py). It stands apart so that the operators of Triton can ask
(triton.py), whose availability `use_backend` asks in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from llama_fast.ops.backends.table import OPS

# What LLAMA_FAST_BACKEND says; choice.py fills it in when it is imported. The dictionaries that the
# context variable holds never change after that.
DEFAULT = dict.fromkeys(OPS, "auto")
_chosen: ContextVar[dict[str, str]] = ContextVar("llama_fast_backends", default=DEFAULT)
# torch.compile can neither trace a context variable nor guard on one, but it can a dictionary: the
# choice of the block of the process that was entered last and is not left yet.
_traced = dict(DEFAULT)
_entered: list[dict[str, str]] = []
_lock = threading.Lock()


def set_default(choice: dict[str, str]) -> None:
    """What holds outside of every block, from now on."""
    DEFAULT.update(choice)
    _traced.update(choice)


@contextmanager
def entered(choice: dict[str, str]) -> Iterator[None]:
    """Inside the block `choice` is asked for; the other ops keep theirs."""
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
    """The backend asked for by op, here and now; for `in_force`, outside torch.compile."""
    return _chosen.get()


@contextmanager
def in_force(choice: dict[str, str]) -> Iterator[None]:
    """Inside the block what was `current` elsewhere is, in a backward pass for example."""
    token = _chosen.set(choice)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen(op: str) -> str:
    """The backend asked for, which may be "auto"."""
    return _traced[op] if torch.compiler.is_compiling() else _chosen.get()[op]
