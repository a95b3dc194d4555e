"""Metrics of the steps of a run, and the CSV files that store them."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from llama_fast._inside import inside
from llama_fast._write import open_own, replacing
from llama_fast.data import DataError

Row = TypeVar("Row")

# Columns that may differ if the same steps are run twice.
MEASURED = ("seconds", "memory", "mfu", "joules")


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step.

    Attributes:
        step: number of the step, from 1.
        tokens: number of tokens.
        targets: number of tokens with a loss.
        loss: mean loss in nats per target, including the z-loss.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate.
        seconds: duration of the step, including data loading.
        valid_loss: mean loss over the validation data in nats per target; None if the step had no
            validation.
        perplexity: e to the power of valid_loss.
        pairs: number of query-key pairs in attention.
        memory: peak memory so far in bytes: resident in RAM, or allocated on the GPU by torch.
        mfu: model FLOPs utilisation, from 0 to 1; see :mod:`llama_fast.train.flops`.
        joules: energy of the step; None if it cannot be measured.
    """

    step: int
    tokens: int
    targets: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    valid_loss: float | None = None
    perplexity: float | None = None
    pairs: int = 0
    memory: int | None = None
    mfu: float | None = None
    joules: float | None = None

    def __str__(self) -> str:
        """Text for a log line."""
        parts = [f"loss {self.loss:.4f}", f"{self.tokens / self.seconds:,.0f} tokens/s"]
        if self.mfu is not None:
            parts.append(f"MFU {self.mfu:.0%}")
        if self.memory is not None:
            parts.append(f"{self.memory / 1e9:.2f} GB")
        if self.joules is not None:
            parts.append(f"{self.joules / self.tokens:.2g} J/token")
        parts += [f"lr {self.lr:.2e}", f"gradient {self.grad_norm:.2f}"]
        if self.valid_loss is not None:
            parts.append(f"validation {self.valid_loss:.4f} (perplexity {self.perplexity:.4g})")
        return ", ".join(parts)


def read_scalars(*values: Tensor) -> list[float]:
    """Copy 0-dim tensors to the host in one transfer, so that the host waits only once."""
    result: list[float] = torch.stack([v.detach().to(torch.float64) for v in values]).tolist()
    return result


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError (such as a full disk) that is raised in the block."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: could not be written ({error}); the checkpoints are intact"
        ) from error


class MetricsFile:
    """A CSV file to which each row is written immediately.

    Args:
        path: path of the file, which is created if it does not exist.
        keep_steps: the step from which the run is resumed; rows of later steps are deleted.
        row: class of the rows, a dataclass whose first field is `step`; its fields are the columns.

    Raises:
        DataError: the file has other columns.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, keep_steps: int, row: type[Any] = StepMetrics) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [field.name for field in fields(row)]
        old = _rows(path, names) if path.exists() else []
        kept = [line for line in old if int(line[0]) <= keep_steps]
        with naming_file(path):
            with replacing(path, newline="") as file:  # atomic: a killed process loses no row
                csv.writer(file).writerows([names, *kept])
            descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
        self._file = os.fdopen(descriptor, "a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def add(self, row: Any) -> None:
        """Append a row.

        Raises:
            OSError: the row cannot be written, for example because the disk is full.
        """
        values: list[Any] = ["" if value is None else value for value in astuple(row)]
        with naming_file(self.path):
            self._writer.writerow(values)
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # add() has raised the error already
            self._file.close()


def _rows(path: Path, names: list[str]) -> list[list[str]]:
    inside(path.parent, path.name, path, DataError, links=True)
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [names]
    if header != names:
        raise DataError(f"{path}: expected the columns {', '.join(names)}")
    # A kill can leave the last line incomplete.
    return [row for row in rows if len(row) == len(names) and row[0].isdigit()]


def read_metrics(path: Path) -> list[StepMetrics]:
    """Read the steps in a ``metrics.csv``; see :func:`read_rows`."""
    return read_rows(path, StepMetrics)


def read_rows(path: Path, row: type[Row]) -> list[Row]:
    """Read the rows of a :class:`MetricsFile`; an incomplete last row is skipped.

    Args:
        path: path of the file.
        row: class of the rows.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file has other columns.
    """
    types = get_type_hints(row)
    names = [field.name for field in fields(row)]  # type: ignore[arg-type]
    return [
        row(**{name: _value(text, types[name]) for name, text in zip(names, line, strict=True)})
        for line in _rows(path, names)
    ]


def _value(text: str, annotation: Any) -> Any:
    """Convert a cell to the annotated type of its field: `T` or `T | None`."""
    if not text:
        return None
    (plain,) = set(get_args(annotation) or (annotation,)) - {type(None)}
    return plain(text)
