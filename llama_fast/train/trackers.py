"""Experiment trackers: TensorBoard always, Weights & Biases or trackio with `report_to`."""

from __future__ import annotations

import contextlib
import importlib
import socket
import time
from pathlib import Path
from typing import Any, Protocol

from llama_fast.train.metrics import StepMetrics, naming_file

PROJECT = "llama_fast"


class Tracker(Protocol):
    """Receives scalars by name."""

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Log the scalars of a step; steps must increase. Raises OSError if the disk is full."""

    def flush(self) -> None:
        """Write everything that was logged."""

    def close(self) -> None:
        """End the run."""


class TensorBoard:
    """Writes a TensorBoard event file, each step immediately and in this thread.

    PyTorch's SummaryWriter writes in a background thread, where an error such as a full disk only
    prints a traceback, and what is not written yet is lost if the process is killed.

    Args:
        folder: folder for ``tensorboard --logdir``; it may have event files of earlier starts.
        after_step: the step from which the run is resumed; TensorBoard hides later steps in
            earlier files.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, after_step: int) -> None:
        _import("tensorboard", "pip install 'llama_fast[train]'")
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        start = SessionLog(status=SessionLog.START)
        self._write(step=after_step + 1, session_log=start)

    def _write(self, **fields: Any) -> None:
        with naming_file(self._path):
            event = self._event(wall_time=time.time(), **fields)
            self._records.write(event.SerializeToString())
            self._records.flush()

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Write the scalars."""
        values = [self._summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._write(step=step, summary=self._summary(value=values))

    def flush(self) -> None:
        """Do nothing: every step is written immediately."""

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # log() has raised the error already
            self._file.close()


class WandbOrTrackio:
    """Logs to Weights & Biases, or to trackio, which has the same functions.

    A resumed run continues the same run in the tracker. If steps are repeated after a kill, W&B
    ignores those it already has, and trackio shows them twice.

    Args:
        package: "wandb" or "trackio".
        folder: the run's folder, whose name becomes the name of the run.
        run_id: the id in run.json.
        config: settings to show with the curves.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, package: str, folder: Path, run_id: str, config: dict[str, Any]) -> None:
        self._package = _import(package, f"pip install {package}", "report_to: ")
        name = folder.resolve().name
        common: dict[str, Any] = {"project": PROJECT, "config": config, "resume": "allow"}
        if package == "wandb":
            self._package.init(id=run_id, name=name, dir=str(folder), **common)
        else:
            self._package.init(name=f"{name}-{run_id}", **common)

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Log the scalars."""
        self._package.log(scalars, step=step)

    def flush(self) -> None:
        """Do nothing: both packages send in the background and have no such function."""

    def close(self) -> None:
        """Send the remaining data and end the run."""
        self._package.finish()


def _import(package: str, remedy: str, setting: str = "") -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"{setting}expected the package {package} to be installed ({remedy})"
        ) from None


def scalars(step: StepMetrics) -> dict[str, float]:
    """The metrics of a step that are not None, by their names in trackers."""
    per_token = None if step.joules is None else step.joules / step.tokens
    named = {
        "train/loss": step.loss,
        "train/grad_norm": step.grad_norm,
        "train/lr": step.lr,
        "valid/loss": step.valid_loss,
        "valid/perplexity": step.perplexity,
        "speed/tokens_per_second": step.tokens / step.seconds,
        "speed/mfu": step.mfu,
        "memory/peak_gb": None if step.memory is None else step.memory / 1e9,
        "energy/joules_per_token": per_token,
    }
    return {name: value for name, value in named.items() if value is not None}
