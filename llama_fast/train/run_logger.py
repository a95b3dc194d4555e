"""Measures the steps of a run and writes all of its output."""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch

from llama_fast._energy import NOT_MEASURABLE, find_meter
from llama_fast._format import duration
from llama_fast._memory import peak_rss
from llama_fast._out_of_memory import is_out_of_memory
from llama_fast.data import TokenShards
from llama_fast.models import LlamaConfig
from llama_fast.models.checkpoints.training import RunCheckpointError
from llama_fast.train import out_of_memory, progress, record
from llama_fast.train.benchmarks import BenchmarkScore
from llama_fast.train.config import TrainConfig
from llama_fast.train.flops import peak_flops, training_flops
from llama_fast.train.metrics import MetricsFile, StepMetrics
from llama_fast.train.parallel import ParallelContext
from llama_fast.train.profiling import Profiler
from llama_fast.train.trackers import TensorBoard, Tracker, WandbOrTrackio, scalars

MAX_EXPONENT = 709  # e to a higher power overflows a float64


class RunLogger:
    """Measures steps, logs them, and writes metrics, curves, the record of the run and a trace.

    With `torch.distributed` every rank has one, but only rank 0 writes. Within the context an
    out-of-memory error becomes a MemoryError that names settings that would help.

    Args:
        config: the run's configuration.
        model: architecture of the model.
        shards, valid: training and validation data.
        parallel: the parallel context of this process.
        step: number of steps done.
        log: called with each line of output.

    Raises:
        ImportError: TensorBoard or the tracker in `report_to` is not installed.

    Example:
        >>> with RunLogger(config, model.config, shards, None, parallel, 0, print) as logger:
        ...     logger.add(logger.measure(train_step))
    """

    def __init__(
        self,
        config: TrainConfig,
        model: LlamaConfig,
        shards: TokenShards,
        valid: TokenShards | None,
        parallel: ParallelContext,
        step: int,
        log: Callable[[str], object],
    ) -> None:
        self._config, self._model, self._parallel = config, model, parallel
        self._device, self._step, self._log = parallel.device, step, log
        self._peak = peak_flops(self._device, config.precision)
        self._meter = find_meter(self._device)
        self._throughput = progress.ThroughputMeter(config.steps)
        self._trackers: list[Tracker] = []
        self._display: progress.ProgressDisplay | None = None
        self._profiler: Profiler | None = None
        self._metrics: MetricsFile | None = None
        self._scores: MetricsFile | None = None
        if parallel.rank == 0:
            self._open(shards, valid)

    def _open(self, shards: TokenShards, valid: TokenShards | None) -> None:
        """Open the files and trackers that rank 0 writes."""
        config, folder = self._config, Path(self._config.out)
        self._metrics = MetricsFile(folder / "metrics.csv", keep_steps=self._step)
        self._trackers.append(TensorBoard(folder / "tensorboard", self._step))
        run_id = record.add_entry(folder, record.entry(config, shards, valid, self._step))
        if config.report_to != "none":
            settings = dataclasses.asdict(config)
            self._trackers.append(WandbOrTrackio(config.report_to, folder, run_id, settings))
        if config.benchmarks:
            self._scores = MetricsFile(folder / "benchmarks.csv", self._step, BenchmarkScore)
        self._log(
            f"{self._model.num_parameters() / 1e6:.1f} M weights on {self._device.type}; MFU: "
            f"share of {self._peak}; energy: "
            f"{NOT_MEASURABLE if self._meter is None else self._meter.source}"
        )
        if config.profile_steps:
            is_cuda = self._device.type == "cuda"
            self._profiler = Profiler(folder, config.profile_steps, is_cuda, self._log)
        self._display = progress.progress_display(config.steps, self._step)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        advice = None
        # A RunCheckpointError already names the checkpoint and the reason.
        if not isinstance(error, RunCheckpointError) and is_out_of_memory(error):
            assert error is not None
            advice = out_of_memory.explain(error, self._config, self._model, self._step)
            # The frames hold the failed step's tensors; what follows may need the memory.
            traceback.clear_frames(trace)
        for part in (self._metrics, self._display, self._profiler, *self._trackers, self._scores):
            if part is not None:
                part.close()
        if advice is not None:
            raise MemoryError(advice) from error

    def measure(self, train_step: Callable[[], StepMetrics]) -> StepMetrics:
        """Run a step; return its metrics with memory, MFU and energy added.

        Memory is that of this process; MFU and energy are those of all processes.
        """
        before = math.nan if self._meter is None else self._meter.joules()
        metrics = train_step()
        self._step = metrics.step
        joules = -before if self._meter is None else self._meter.joules() - before
        joules = self._parallel.sum_joules(joules)
        flops = training_flops(self._model, metrics.tokens, metrics.targets, metrics.pairs)
        is_cuda = self._device.type == "cuda"
        return dataclasses.replace(
            metrics,
            memory=torch.cuda.max_memory_allocated(self._device) if is_cuda else peak_rss(),
            mfu=flops / metrics.seconds / (self._peak.flops * self._parallel.world_size),
            joules=None if math.isnan(joules) else joules,
        )

    def add(self, metrics: StepMetrics) -> StepMetrics:
        """Write the metrics of a step; return them with the perplexity added."""
        step, config = metrics.step, self._config
        if metrics.valid_loss is not None:
            overflows = metrics.valid_loss > MAX_EXPONENT
            perplexity = math.inf if overflows else math.exp(metrics.valid_loss)
            metrics = dataclasses.replace(metrics, perplexity=perplexity)
        if self._metrics is None:
            return metrics
        self._metrics.add(metrics)
        for tracker in self._trackers:
            tracker.log(scalars(metrics), step)
        self._throughput.add(metrics)
        is_last = step == config.steps
        if is_last or step % config.log_every == 0 or metrics.valid_loss is not None:
            left = "" if is_last else f", {duration(self._throughput.seconds_left)} left"
            self._log(f"step {step}/{config.steps}: {metrics}{left}")
        if self._display is not None:
            self._display.update(metrics, self._throughput)
        if self._profiler is not None:
            self._profiler.step()
        return metrics

    def add_scores(self, scores: Sequence[BenchmarkScore]) -> None:
        """Write the benchmark scores of a step; to be called on rank 0 only."""
        if self._scores is None:
            return
        for score in scores:
            self._scores.add(score)
            self._log(f"step {score.step}/{self._config.steps}: {score}")
        accuracies = {f"benchmarks/{score.benchmark}": score.accuracy for score in scores}
        for tracker in self._trackers:
            tracker.log(accuracies, self._step)

    def flush(self) -> None:
        """Flush the trackers before a checkpoint, so that a resumed run's curves have no gap."""
        for tracker in self._trackers:
            tracker.flush()
