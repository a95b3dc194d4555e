"""What each step was, in memory, in a line of output, and in a CSV file."""

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

# Columns that another run of the same steps fills with other numbers.
MEASURED = ("seconds", "memory", "mfu", "joules")


@dataclass(frozen=True)
class StepMetrics:
    """One step of the optimizer.

    Attributes:
        step: counted from 1.
        tokens: that the model read.
        targets: that the loss is the mean of.
        loss: nats per target, z-loss included.
        grad_norm: before it was clipped.
        lr: learning rate.
        seconds: of the step, loading of the data included.
        valid_loss: nats per target of the validation data, where the step was followed by one.
        perplexity: e to the power of valid_loss.
        pairs: of a query and a key it attends to, which the arithmetic of attention follows.
        memory: most bytes so far: resident in RAM, or allocated on the GPU by torch.
        mfu: model FLOPs utilisation, a share; see :mod:`llama_fast.train.flops`.
        joules: of the step; None where the machine has no counter.
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
        """For a line of output."""
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
    """Copy 0-dim tensors to the host in one transfer, so that it waits for the device once."""
    result: list[float] = torch.stack([v.detach().to(torch.float64) for v in values]).tolist()
    return result


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Around what writes to a file of a run: its OSError, such as a full disk, names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: could not be written ({error}); the checkpoints are whole"
        ) from error


class MetricsFile:
    """A CSV file with a row a step, written at once.

    Args:
        path: made if it is not there.
        keep_steps: rows of later steps are dropped: the run went on from before them.
        row: class of the rows, a dataclass that begins with `step`; its fields are the columns.

    Raises:
        DataError: the file is something else.
        OSError: it can't be written.
    """

    def __init__(self, path: Path, keep_steps: int, row: type[Any] = StepMetrics) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [field.name for field in fields(row)]
        old = _rows(path, names) if path.exists() else []
        kept = [line for line in old if int(line[0]) <= keep_steps]
        with written(path):
            with replacing(path, newline="") as file:  # a kill in between loses no row
                csv.writer(file).writerows([names, *kept])
            descriptor = open_own(path, os.O_WRONLY | os.O_APPEND)
        self._file = os.fdopen(descriptor, "a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def add(self, row: Any) -> None:
        """Append a row.

        Raises:
            OSError: the disk is full, or another failure.
        """
        values: list[Any] = ["" if value is None else value for value in astuple(row)]
        with written(self.path):
            self._writer.writerow(values)
            self._file.flush()

    def close(self) -> None:
        """No more rows."""
        with contextlib.suppress(OSError):  # of a row that could not be written: add() said so
            self._file.close()


def _rows(path: Path, names: list[str]) -> list[list[str]]:
    inside(path.parent, path.name, path, DataError, links=True)
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [names]
    if header != names:
        raise DataError(f"{path}: expected the columns {', '.join(names)}")
    # A kill can leave the last line unfinished.
    return [row for row in rows if len(row) == len(names) and row[0].isdigit()]


def read_metrics(path: Path) -> list[StepMetrics]:
    """The steps in a ``metrics.csv``; see :func:`read_rows`."""
    return read_rows(path, StepMetrics)


def read_rows(path: Path, row: type[Row]) -> list[Row]:
    """The rows of a :class:`MetricsFile`; one that is just being written is left out.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it has other columns.
    """
    kinds = get_type_hints(row)
    names = [field.name for field in fields(row)]  # type: ignore[arg-type]
    return [
        row(**{name: _value(text, kinds[name]) for name, text in zip(names, line, strict=True)})
        for line in _rows(path, names)
    ]


def _value(text: str, kind: Any) -> Any:
    """A cell as what its field is annotated with: a type, or that type or None."""
    if not text:
        return None
    (plain,) = set(get_args(kind) or (kind,)) - {type(None)}
    return plain(text)
