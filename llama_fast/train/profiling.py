"""Record a trace of some steps for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, schedule

WARMUP = 3  # steps that compile, fill caches, and start the data workers
TRACE = "trace.json.gz"


class Profiler:
    """Records steps of a run after the first :data:`WARMUP` ones.

    Args:
        folder: the run's folder; the trace is written to `trace.json.gz` in it.
        steps: number of steps to record, at least 1.
        cuda: whether the model is on a GPU.
        log: called with each line of output.
    """

    def __init__(self, folder: Path, steps: int, cuda: bool, log: Callable[[str], object]) -> None:
        self._path, self._steps, self._log, self._done = folder / TRACE, steps, log, False
        self._time = "self_device_time_total" if cuda else "self_cpu_time_total"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=WARMUP - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._profile.start()

    def step(self) -> None:
        """Count a step; to be called after each one."""
        if not self._done:
            self._profile.step()

    def close(self) -> None:
        """Stop recording; write the trace if the run ended before enough steps were recorded."""
        if not self._done:
            self._profile.stop()
        if not self._done:
            self._log(f"profile: no trace, the run ended within its first {WARMUP} steps")

    def _write(self, recorded: Any) -> None:
        self._done = True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix selects compression. In a new temporary folder there can be no link of that
        # name.
        with tempfile.TemporaryDirectory(prefix=".trace-", dir=self._path.parent) as folder:
            recorded.export_chrome_trace(str(Path(folder, TRACE)))
            os.replace(Path(folder, TRACE), self._path)
        self._log(f"profile: {self._path} (open it at ui.perfetto.dev)")
        for line in top_ops(recorded.key_averages(), self._time):
            self._log(line)


def top_ops(averages: Any, attribute: str, count: int = 10) -> list[str]:
    """Format a table of the operators with the largest self time.

    Args:
        averages: the result of ``torch.profiler.profile.key_averages()``.
        attribute: attribute of its entries to sort by, a time in microseconds.
        count: maximum number of rows.

    Returns:
        The lines of the table, the first of which is its header.
    """
    ops = [(getattr(op, attribute), op) for op in averages if not op.key.startswith("Profiler")]
    total = sum(time for time, _ in ops) or 1.0
    ops = sorted(ops, key=lambda pair: pair[0], reverse=True)[:count]
    width = max([len(op.key[:48]) for _, op in ops], default=0)
    return [f"  {'op':<{width}}  share        ms   calls"] + [
        f"  {op.key[:48]:<{width}}  {time / total:5.1%}  {time / 1e3:8,.1f}  {op.count:6,}"
        for time, op in ops
    ]
