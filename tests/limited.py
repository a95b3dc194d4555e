"""Work in a process that may take only so much time and memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def outcome(
    work: Callable[..., object], *args: Any, memory: int = 1 << 30, seconds: int = 30
) -> object:
    """What `work(*args)` returns, or its error if it is one that the commands show in one line.

    Args:
        work: called in a fork of this process.
        args: of it.
        memory: bytes that it may take beside what this process has.
        seconds: of CPU time; where it takes longer, or ends otherwise, this fails.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(there, work, args, memory, seconds))
    child.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = None
    child.join()
    assert found is not None, f"ended with status {child.exitcode} (24: more than {seconds} s)"
    kind, value = found
    assert kind != "fault", value
    return value


def error_of(work: Callable[..., object], *args: Any, **limits: int) -> str:
    """The message of the error that `work(*args)` has to end in; see :func:`outcome`."""
    found = outcome(work, *args, **limits)
    assert isinstance(found, Exception), f"expected an error, got {found!r:.300}"
    return str(found)


def _run(
    pipe: Any, work: Callable[..., object], args: tuple[Any, ...], memory: int, seconds: int
) -> None:
    from llama_fast.cli.exit_codes import USER_ERRORS

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    try:
        found = ("value", work(*args))
    except MemoryError:
        found = ("fault", f"out of {memory:,} bytes:\n{traceback.format_exc()}")
    except USER_ERRORS as error:
        found = ("value", ValueError(str(error)))
    except BaseException:
        found = ("fault", traceback.format_exc())
    pipe.send(found)
    pipe.close()
    os._exit(0)
