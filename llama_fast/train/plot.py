"""Plot the curves of training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from llama_fast._plot_style import INK, SERIES, style_axes
from llama_fast.data import DataError
from llama_fast.train.metrics import StepMetrics, read_metrics

Array = npt.NDArray[np.float64]

X = Literal["step", "tokens", "hours"]
_X_LABELS = {"step": "step", "tokens": "tokens", "hours": "hours of training"}


def figure(runs: Sequence[Path], x: X = "step") -> Figure:
    """Plot loss, speed, learning rate and gradient norm of runs, one colour per run.

    Lines are moving averages over a fortieth of the run, drawn over the pale values of the steps.
    Validation losses have markers.

    Args:
        runs: folders of the runs.
        x: unit of the horizontal axis; hours count the time of training steps only.

    Raises:
        FileNotFoundError: a folder has no metrics.csv.
        DataError: a metrics.csv has no steps, or other columns.
    """
    drawn = Figure(figsize=(10, 7), layout="constrained")
    panels = drawn.subplot_mosaic([["loss", "loss"], ["speed", "lr"], ["gradient", "gradient"]],
                                  height_ratios=(2.2, 1, 1))  # fmt: skip
    loss, gradient = panels["loss"], panels["gradient"]
    names = _names(runs)
    for number, folder in enumerate(runs):
        steps = _read(folder)
        colour = SERIES[number % len(SERIES)]
        style = "-" if number < len(SERIES) else "--"  # more runs than colours
        line: dict[str, Any] = {"color": colour, "linestyle": style, "linewidth": 1.8}
        at = _positions(steps, x)
        curves = (
            (loss, [s.loss for s in steps], names[number]),
            (panels["speed"], [s.tokens / s.seconds for s in steps], None),
            (gradient, [s.grad_norm for s in steps], None),
        )
        for axes, values, label in curves:
            numbers = np.array(values, dtype=np.float64)
            axes.plot(at, numbers, color=colour, alpha=0.22, linewidth=0.8, zorder=1)
            axes.plot(at, smoothed(numbers), label=label, zorder=2, **line)
        panels["lr"].plot(at, [s.lr for s in steps], **line)
        valid = [(a, s.valid_loss) for a, s in zip(at, steps, strict=True) if s.valid_loss]
        if valid:
            label = "validation" if len(runs) == 1 else f"{names[number]}, validation"
            loss.plot(*zip(*valid, strict=True), color=INK, linewidth=0.8, linestyle=":",
                      marker="os^Dv<>"[number % 7], markerfacecolor=colour, markersize=6, zorder=3,
                      label=label)  # fmt: skip
    _limit(loss)
    _limit(gradient)
    loss.set(ylabel="loss (nats per token)")
    loss.legend(frameon=False, ncols=1 + (len(runs) > 4))
    panels["speed"].set(ylabel="tokens per second", ylim=(0, None))
    panels["speed"].yaxis.set_major_formatter(EngFormatter(sep=""))
    panels["lr"].set(ylabel="learning rate", ylim=(0, None))
    panels["lr"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    gradient.set(ylabel="gradient norm")
    for axes in panels.values():
        axes.set_xlabel(_X_LABELS[x], color=INK)
        axes.margins(x=0.01)
        if x != "hours":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        style_axes(axes)
    return drawn


def smoothed(values: Array, share: int = 40) -> Array:
    """Moving average.

    Args:
        values: (n,) values; those that are not finite are left out of the means.
        share: the window has n / share values, fewer at the ends.

    Returns:
        (n,) means; NaN if a window has no finite value.
    """
    width = min(len(values), max(1, len(values) // share) | 1)
    finite = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite.astype(np.float64), window, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _read(folder: Path) -> list[StepMetrics]:
    path = folder / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"run: expected the folder of a run, {path} does not exist")
    steps = read_metrics(path)
    if not steps:
        raise DataError(f"{path}: expected at least one step, got none")
    return steps


def _positions(steps: list[StepMetrics], x: X) -> Array:
    if x == "step":
        return np.array([s.step for s in steps], dtype=np.float64)
    if x == "tokens":
        return np.cumsum([s.tokens for s in steps], dtype=np.float64)
    return np.cumsum([s.seconds for s in steps], dtype=np.float64) / 3600


def _names(runs: Sequence[Path]) -> list[str]:
    """Names of the folders, or their paths if two names are the same."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _limit(axes: Axes) -> None:
    """Limit the axis to the smoothed curves, which the peak of the first steps would flatten."""
    smooth = np.concatenate([line.get_ydata() for line in axes.lines if line.get_zorder() >= 2])
    finite = smooth[np.isfinite(smooth)]
    if finite.size:
        low, high = finite.min(), finite.max()
        axes.set_ylim(low - 0.08 * (high - low) - 1e-12, high + 0.05 * (high - low) + 1e-12)
