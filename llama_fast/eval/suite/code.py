"""Scores programs that the model wrote (HumanEval, MBPP): they run in the sandbox only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["CodeNotAllowedError", "check_allowed", "local_metrics"]


class CodeNotAllowedError(ValueError):
    """A task would run programs that the model writes, and that was not allowed."""


def check_allowed(name: str, manager: Any, allow_code: bool) -> None:
    """Refuses a task that runs the model's programs unless that is allowed.

    Raises:
        CodeNotAllowedError: it does, and it is not.
    """
    entry = manager.task_index.get(name)
    unsafe = entry is not None and bool((entry.cfg or {}).get("unsafe_code"))
    if unsafe and not allow_code:
        raise CodeNotAllowedError(
            f"{name} runs programs that the model writes: allow it with --allow-code"
        )


@contextmanager
def local_metrics() -> Iterator[None]:
    """Within the block, ``evaluate.load`` gives the metrics of this package where it has them."""
    yield
