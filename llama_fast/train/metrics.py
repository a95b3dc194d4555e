"""What each step was, in memory, in a line of output, and in a CSV file."""

from __future__ import annotations

import csv
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from llama_fast.data import DataError


@dataclass(frozen=True)
class Step:
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
    """

    step: int
    tokens: int
    targets: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    valid_loss: float | None

    def __str__(self) -> str:
        """For a line of output."""
        line = (
            f"loss {self.loss:.4f}, {self.tokens / self.seconds:,.0f} tokens/s, "
            f"lr {self.lr:.2e}, gradient {self.grad_norm:.2f}"
        )
        return line if self.valid_loss is None else f"{line}, validation {self.valid_loss:.4f}"


NAMES = [field.name for field in fields(Step)]


class MetricsFile:
    """``metrics.csv``: a row a step, written at once.

    Args:
        path: made if it is not there.
        keep_steps: rows of later steps are dropped: the run went on from before them.

    Raises:
        DataError: the file is something else.
    """

    def __init__(self, path: Path, keep_steps: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in self._rows() if int(row[0]) <= keep_steps] if path.exists() else []
        # Beside it and renamed: a kill in between loses no row.
        partial = path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([NAMES, *kept])
        os.replace(partial, path)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def _rows(self) -> list[list[str]]:
        with self.path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [NAMES]
        if header != NAMES:
            raise DataError(f"{self.path}: expected the columns {', '.join(NAMES)}")
        # A kill can leave the last line unfinished.
        return [row for row in rows if len(row) == len(NAMES) and row[0].isdigit()]

    def add(self, step: Step) -> None:
        """Append a row."""
        row: list[Any] = ["" if value is None else value for value in astuple(step)]
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """No more rows."""
        self._file.close()


def read_metrics(path: Path) -> list[Step]:
    """The steps in a ``metrics.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Step(
            step=int(row["step"]),
            tokens=int(row["tokens"]),
            targets=int(row["targets"]),
            loss=float(row["loss"]),
            grad_norm=float(row["grad_norm"]),
            lr=float(row["lr"]),
            seconds=float(row["seconds"]),
            valid_loss=float(row["valid_loss"]) if row["valid_loss"] else None,
        )
        for row in rows
    ]
