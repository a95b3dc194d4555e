"""Measures the peak memory of a step: each side in a separate process, forked from a clean one.

`Worker` starts a process that has imported everything and run nothing. For each question it forks
a child, which creates the inputs, reads its RSS, runs a step and reads its peak RSS. Libraries
allocate memory of their own at the first call, so the op is first run on a small shape.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from llama_fast._memory import peak_rss, reset_peak_rss, rss

from .baselines import all_implementations
from .cases import Case
from .child import Child
from .implementation import Implementation

# glibc keeps freed blocks below a size that grows with use. With a fixed size it returns all large
# blocks, so that resident memory is memory in use.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


def unavailable() -> str | None:
    """Why memory cannot be measured on this machine, or None."""
    if not sys.platform.startswith("linux"):
        return "measured on Linux only"
    if not reset_peak_rss():
        return "/proc/self/clear_refs cannot be written"
    return None if rss() else "/proc/self/status has no VmRSS"


class Worker:
    """Answers `extra_bytes` until it is closed."""

    def __init__(self, threads: int, implementations: list[Implementation]) -> None:
        settings = {
            "threads": threads,
            "implementations": [implementation.name for implementation in implementations],
        }
        self._child = Child("memory", settings, ENVIRONMENT)
        self._child.ask({})  # wait for its imports, which must not overlap with timing

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def extra_bytes(
        self, case: Case, implementation: Implementation
    ) -> tuple[int | None, str | None]:
        """Return (bytes, None), or (None, reason) if they cannot be measured."""
        try:
            answer = self._child.ask({"case": asdict(case), "implementation": implementation.name})
        except RuntimeError as error:
            return None, str(error).splitlines()[-1]
        return answer.get("bytes"), answer.get("error")


def _step(case: Case, implementation: Implementation) -> int:
    """Measure the bytes that a step takes; runs in the forked child."""
    from .inputs import make_inputs
    from .measure import TimedStep

    step = TimedStep(case, implementation, make_inputs(case))
    # Compiling takes memory, too. Compiled code keeps nothing from one call to the next, so the
    # case itself may be run first. Our own kernels keep scratch memory, which must be counted.
    rehearsal = (
        step
        if implementation.compiled
        else TimedStep(case.small(), implementation, make_inputs(case.small()))
    )
    rehearsal()
    rehearsal.restore()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = rss()
    if not reset_peak_rss():
        raise RuntimeError("/proc/self/clear_refs cannot be written")
    step()
    return max(0, peak_rss() - before)


def _in_child(case: Case, implementation: Implementation) -> dict[str, Any]:
    """The answer of a forked child, or how it ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            answer: dict[str, Any] = {"bytes": _step(case, implementation)}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {str(error)[:160]}"}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)  # without the clean-up of the parent's objects
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if said:
        return json.loads(said)
    return {"error": f"the process ended with signal {os.WTERMSIG(status)}, perhaps out of memory"}


def serve(settings: dict[str, Any]) -> None:
    """The worker process: reads one question per line and writes one answer per line."""
    import torch

    from .child import answers

    torch.set_num_threads(settings["threads"])
    known = all_implementations()
    # Do this once here instead of in every child.
    if any(known[name].compiled for name in settings["implementations"]):
        importlib.import_module("torch._inductor.compile_fx")
    if any("transformers" in known[name].needs for name in settings["implementations"]):
        importlib.import_module("transformers.models.llama.modeling_llama")

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if not question:
            return {}
        return _in_child(Case(**question["case"]), known[question["implementation"]])

    answers(answer)
