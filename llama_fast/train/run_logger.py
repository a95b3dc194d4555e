"""Everything that a person sees of a run; the run itself only calls this."""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from llama_fast._format import duration
from llama_fast._memory import peak_rss
from llama_fast._out_of_memory import is_out_of_memory
from llama_fast.models.checkpoints.training import CheckpointError
from llama_fast.train import out_of_memory, progress, record
from llama_fast.train.benchmarks import BenchmarkScore, BenchmarkScorer
from llama_fast.train.energy import find_meter
from llama_fast.train.flops import peak_flops, training_flops
from llama_fast.train.metrics import MetricsFile, StepMetrics
from llama_fast.train.profiling import Profiler
from llama_fast.train.trackers import TensorBoard, Tracker, WandbOrTrackio, scalars

if TYPE_CHECKING:
    from llama_fast.train.run import TrainingRun


class RunLogger:
    """Measures the steps of a run, writes them down, and shows them.

    With `torch.distributed` every rank has one; only rank 0 writes and shows. An error that says
    that memory is used up becomes a MemoryError that says what would help.

    Args:
        run: ready for its next step.
        score_benchmarks: called every `eval_every` steps and after the last one.

    Raises:
        ImportError: TensorBoard or what `report_to` names is not installed.

    Example:
        >>> with RunLogger(run) as watch:
        ...     watch.add(watch.measure(run._train_step))
    """

    def __init__(self, run: TrainingRun, score_benchmarks: BenchmarkScorer | None = None) -> None:
        self.run, self.config, self.folder = run, run.config, Path(run.config.out)
        self._is_first = run.parallel.rank == 0
        self._model = run.model.config
        self._score_benchmarks = score_benchmarks
        self._peak = peak_flops(run.device, self.config.precision)
        self._meter = find_meter(run.device)
        self._pace = progress.ThroughputMeter(self.config.steps)
        self._trackers: list[Tracker] = []
        self._bar: progress.ProgressDisplay | None = None
        self._profiler: Profiler | None = None
        self._metrics: MetricsFile | None = None
        if self._is_first:
            self._begin()

    def _begin(self) -> None:
        run, config = self.run, self.config
        self._metrics = MetricsFile(self.folder / "metrics.csv", keep_steps=run.step)
        self._trackers.append(TensorBoard(self.folder / "tensorboard", run.step))
        start = record.entry(config, run.shards, run.valid, run.step)
        run_id = record.add_entry(self.folder, start)
        if config.report_to != "none":
            shown = dataclasses.asdict(config)
            self._trackers.append(WandbOrTrackio(config.report_to, self.folder, run_id, shown))
        if self._score_benchmarks is not None:
            path = self.folder / "benchmarks.csv"
            self._scores = MetricsFile(path, run.step, BenchmarkScore)
        run.log(
            f"{self._model.num_parameters() / 1e6:.1f} M weights on {run.device.type}; MFU: share "
            f"of {self._peak}; energy: "
            f"{'not measurable' if self._meter is None else self._meter.source}"
        )
        if config.profile_steps:
            cuda = run.device.type == "cuda"
            self._profiler = Profiler(self.folder, config.profile_steps, cuda, run.log)
        self._bar = progress.progress_display(config.steps, run.step)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        text = None
        # Of a checkpoint that could not be written, the error names it and says why.
        of_step = None if isinstance(error, CheckpointError) else error
        if of_step is not None and is_out_of_memory(of_step):
            text = out_of_memory.explain(of_step, self.config, self._model, self.run.step)
            # The failed step's tensors hang on its frames: what follows may need the memory.
            traceback.clear_frames(trace)
        if self._metrics is not None:
            self._metrics.close()
        if self._bar is not None:
            self._bar.close()
        if self._profiler is not None:
            self._profiler.close()
        for tracker in self._trackers:
            tracker.close()
        if self._score_benchmarks is not None and self._is_first:
            self._scores.close()
        if text is not None:
            raise MemoryError(text) from error

    def measure(self, take_step: Callable[[], StepMetrics]) -> StepMetrics:
        """Take a step; returns it with memory (this process's), MFU and energy (of all)."""
        before = math.nan if self._meter is None else self._meter.joules()
        step = take_step()
        joules = -before if self._meter is None else self._meter.joules() - before
        joules = self.run.parallel.sum_over_meters(joules, self.run.device)
        flops = training_flops(self._model, step.tokens, step.targets, step.pairs)
        cuda = self.run.device.type == "cuda"
        return dataclasses.replace(
            step,
            memory=torch.cuda.max_memory_allocated(self.run.device) if cuda else peak_rss(),
            mfu=flops / step.seconds / (self._peak.flops * self.run.parallel.ranks),
            joules=None if math.isnan(joules) else joules,
        )

    def add(self, step: StepMetrics) -> StepMetrics:
        """Write a measured step down, and score the benchmarks if it is time; returns its row."""
        due = step.step == self.config.steps
        if step.valid_loss is not None:
            # A loss above 709 nats has no perplexity that a float could hold.
            huge = step.valid_loss > 709
            step = dataclasses.replace(
                step, perplexity=math.inf if huge else math.exp(step.valid_loss)
            )
        if self._score_benchmarks is not None and (due or step.step % self.config.eval_every == 0):
            self._add_scores(self._score_benchmarks, step.step)
        if self._metrics is None:
            return step
        self._metrics.add(step)
        for tracker in self._trackers:
            tracker.log(scalars(step), step.step)
        self._pace.add(step)
        if due or step.step % self.config.log_every == 0 or step.valid_loss is not None:
            left = f", {duration(self._pace.seconds_left)} left" if not due else ""
            self.run.log(f"step {step.step}/{self.config.steps}: {step}{left}")
        if self._bar is not None:
            self._bar.update(step, self._pace)
        if self._profiler is not None:
            self._profiler.step()
        return step

    def _add_scores(self, score_benchmarks: BenchmarkScorer, step: int) -> None:
        model = self.run.parallel.whole(self.run.model)
        if model is None:
            return
        rows = score_benchmarks(model, step)
        for row in rows:
            self._scores.add(row)
            self.run.log(f"step {step}/{self.config.steps}: {row}")
        found = {f"benchmarks/{row.benchmark}": row.accuracy for row in rows}
        for tracker in self._trackers:
            tracker.log(found, step)

    def flush(self) -> None:
        """Before a checkpoint: no curve has a hole where a run goes on from it."""
        for tracker in self._trackers:
            tracker.flush()
