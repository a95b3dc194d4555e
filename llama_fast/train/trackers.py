"""Where the curves of a run go beside its CSV files: TensorBoard, and W&B or trackio if asked."""

from __future__ import annotations

import contextlib
import importlib
import socket
import time
from pathlib import Path
from typing import Any, Literal, Protocol

from llama_fast.train.metrics import StepMetrics, written

ReportTo = Literal["none", "wandb", "trackio"]
PROJECT = "llama_fast"


class Tracker(Protocol):
    """Takes numbers by name."""

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Numbers of a step; steps come in their order. Raises OSError where the disk is full."""

    def flush(self) -> None:
        """Have written what was logged."""

    def close(self) -> None:
        """No more."""


class TensorBoard:
    """An event file in a folder, written step by step by this thread.

    PyTorch's SummaryWriter does it in a thread of its own: what fails there, such as a full disk,
    is a traceback on the terminal, and a kill loses what it has not written yet.

    Args:
        folder: that ``tensorboard --logdir`` reads; others of the same run may lie there.
        after_step: what earlier ones say about later steps is not shown.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, after_step: int) -> None:
        _import("tensorboard", "pip install llama_fast[train]")
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
        with written(self._path):
            event = self._event(wall_time=time.time(), **fields)
            self._records.write(event.SerializeToString())
            self._records.flush()

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Write them."""
        values = [self._summary.Value(tag=k, simple_value=v) for k, v in scalars.items()]
        self._write(step=step, summary=self._summary(value=values))

    def flush(self) -> None:
        """Nothing waits to be written."""

    def close(self) -> None:
        """No more."""
        with contextlib.suppress(OSError):  # of what could not be written: log() said so
            self._file.close()


class WandbOrTrackio:
    """Weights & Biases, or trackio, which has its functions.

    A run that goes on is the same run there. W&B leaves out steps that it already has; trackio
    shows those twice that were done again after a kill.

    Args:
        package: "wandb" or "trackio".
        folder: of the run; its name is the run's.
        run_id: of run.json.
        config: shown beside the curves.

    Raises:
        ImportError: it is not installed.
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
        """Hand them on."""
        self._package.log(scalars, step=step)

    def flush(self) -> None:
        """Neither package has such a function: both send in the background."""

    def close(self) -> None:
        """Send the rest."""
        self._package.finish()


def _import(package: str, remedy: str, setting: str = "") -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"{setting}expected the package {package}, it is not installed ({remedy})"
        ) from None


def scalars(step: StepMetrics) -> dict[str, float]:
    """The numbers of a step under the names that trackers show; those it lacks are left out."""
    per_token = None if step.joules is None else step.joules / step.tokens
    found = {
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
    return {name: value for name, value in found.items() if value is not None}
