"""Measures training steps: each side in a separate process, so that peak memory is its own.

The processes alternate, one step each, like the sides of any other case.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from llama_fast._memory import peak_rss, reset_peak_rss, rss

from .baselines import all_implementations
from .cases import Case
from .child import Child
from .implementation import Implementation
from .results import Side


def measure_training(
    case: Case,
    implementations: list[Implementation],
    rounds: int,
    device: str,
    threads: int,
    progress: Callable[[int, str], None] = lambda done, what: None,
) -> list[Side]:
    """Time every implementation that trains; measure its peak memory beyond Python and torch.

    Arguments and result are those of `measure.measure`.
    """
    sides: list[Side] = []
    running: list[tuple[Side, Child]] = []
    losses: list[float] = []
    settings = {"case": asdict(case), "device": device, "threads": threads}
    try:
        for implementation in implementations:
            if case.op not in implementation.build:
                continue
            side = Side(implementation.name)
            sides.append(side)
            progress(0, implementation.name)
            # A model has many kernels to compile, but its process has finished that when it is
            # timed.
            environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
            child = Child(
                "training", settings | {"implementation": implementation.name}, environment
            )
            try:
                ready = child.ask({})
            except RuntimeError as error:
                side.reason = str(error).splitlines()[-1]
                child.close()
                continue
            if "error" in ready:
                side.reason = ready["error"]
                child.close()
                continue
            running.append((side, child))
            side.first_ms = ready["ms"]
            # Each side draws its own random weights, so the first losses are similar, not equal.
            losses.append(ready["loss"])
            side.difference = abs(losses[-1] / losses[0] - 1)
        for turn in range(rounds):
            for index in range(len(running)):
                side, child = running[(index + turn) % len(running)]
                progress(turn + 1, side.implementation)
                side.samples_ms.append(child.ask({})["ms"])
        for side, child in running:
            last = child.ask({"memory": True})
            side.extra_bytes, side.extra_reason = last["bytes"], last["reason"]
    finally:
        for _, child in running:
            child.close()
    return sides


def serve(settings: dict[str, Any]) -> None:
    """The process of one side: build and warm up at the first question, then run steps."""
    import torch

    from .child import answers
    from .inputs import make_inputs
    from .measure import TimedStep, one_line
    from .memory import unavailable

    case, device = Case(**settings["case"]), settings["device"]
    torch.set_num_threads(settings["threads"])
    before = rss()
    state: dict[str, Any] = {}

    def timed() -> dict[str, Any]:
        begin = time.perf_counter()
        loss = float(state["step"]()[0])  # also waits for a GPU
        return {"ms": 1e3 * (time.perf_counter() - begin), "loss": loss}

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question.get("memory"):
            if device == "cuda":
                return {"bytes": torch.cuda.max_memory_allocated(), "reason": None}
            return {"bytes": None if reason else peak_rss() - before, "reason": reason}
        if state:
            return timed()
        try:
            torch.manual_seed(0)
            state["step"] = TimedStep(
                case, all_implementations()[settings["implementation"]], make_inputs(case, device)
            )
            first = timed()
            timed()
        except Exception as error:
            return {"error": one_line(error)}
        # Compilation is done; memory that it still holds counts, memory that it used meanwhile does
        # not.
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak_rss()
        return first

    reason = unavailable()
    answers(answer)
