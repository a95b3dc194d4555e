"""Runs the suite: the machine's limits, then time and memory of every case."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from llama_fast import info

from . import memory
from .cases import BACKWARD, STEP, Case
from .implementation import Implementation
from .inputs import make_inputs
from .limits import measure_limits
from .measure import TimedStep, measure
from .results import Result, Results, Side
from .training import measure_training

# Called as progress(work done, total work, description of the current work).
Bar = Callable[[int, int, str], None]


@dataclass
class Settings:
    """The options of a run.

    Attributes:
        command: the command line, for the report.
        device: "cpu" or "cuda".
        rounds: number of samples of each side.
        quick: whether to use small sizes, for trying the suite.
        huge_pages: whether torch's allocator requests huge pages (THP_MEM_ALLOC_ENABLE).
        memory: whether to measure memory.
        threads: number of threads of torch and of our kernels.
    """

    command: str
    device: str = "cpu"
    rounds: int = 9
    quick: bool = False
    huge_pages: bool = False
    memory: bool = True
    threads: int = field(default_factory=torch.get_num_threads)


class Suite:
    """A run; `results` holds the measurements so far."""

    def __init__(
        self,
        settings: Settings,
        cases: list[Case],
        implementations: list[Implementation],
        missing: dict[str, str],
    ) -> None:
        self._settings, self._cases, self._implementations = settings, cases, implementations
        what = {implementation.name: implementation.what for implementation in implementations}
        self.results = Results(vars(settings).copy(), info.collect(), {}, missing, what)

    def run(self, bar: Bar, done: Callable[[Result], None] = lambda result: None) -> None:
        """Measure everything; `done` is called with each finished case."""
        began = time.perf_counter()
        per_case = self._settings.rounds + 2  # plus warm-up and memory
        total = per_case * len(self._cases)
        quick, device = self._settings.quick, self._settings.device
        limits = measure_limits(device, quick, lambda what: bar(0, total, f"limits: {what}"))
        self.results.limits.update(limits)
        bar(0, total, "a process that measures memory")
        worker, no_worker = self._worker()
        try:
            for index, case in enumerate(self._cases):

                def progress(turn: int, what: str, at: int = index * per_case) -> None:
                    bar(at + turn, total, f"{self._cases[at // per_case].op} {what}")

                result = Result(case, self._sides(case, progress))
                if case.mode == BACKWARD and self._settings.memory:
                    for side in result.measured:
                        progress(per_case - 1, f"memory of {side.implementation}")
                        self._memory(case, side, worker, no_worker)
                self.results.results.append(result)
                self.results.seconds = time.perf_counter() - began
                done(result)
        finally:
            if worker:
                worker.close()

    def _sides(self, case: Case, progress: Callable[[int, str], None]) -> list[Side]:
        s = self._settings
        if case.mode == STEP:
            return measure_training(
                case, self._implementations, s.rounds, s.device, s.threads, progress
            )
        return measure(case, self._implementations, s.rounds, s.device, progress)

    def _worker(self) -> tuple[memory.Worker | None, str | None]:
        """The worker that measures memory, if needed, or why there is none."""
        needed = any(case.mode == BACKWARD for case in self._cases)
        if not (needed and self._settings.memory and self._settings.device == "cpu"):
            return None, None
        reason = memory.unavailable()
        if reason is not None:
            return None, reason
        try:
            return memory.Worker(self._settings.threads, self._implementations), None
        except RuntimeError as error:
            return None, str(error).splitlines()[-1]

    def _memory(
        self, case: Case, side: Side, worker: memory.Worker | None, no_worker: str | None
    ) -> None:
        by_name = {implementation.name: implementation for implementation in self._implementations}
        implementation = by_name[side.implementation]
        if worker:
            side.extra_bytes, side.extra_reason = worker.extra_bytes(case, implementation)
        elif no_worker:
            side.extra_reason = no_worker
        else:
            side.extra_bytes = cuda_extra_bytes(case, implementation)


def cuda_extra_bytes(case: Case, implementation: Implementation) -> int:
    """Memory that a step takes on the GPU at its peak, on top of its inputs."""
    step = TimedStep(case, implementation, make_inputs(case, "cuda"))
    for _ in range(2):  # the first compiles and tunes
        step.restore()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
