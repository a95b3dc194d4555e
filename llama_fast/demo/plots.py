"""Figures of the demo."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from llama_fast._plot_style import GREY, INK, LLAMA_FAST, TORCH, style_axes
from llama_fast._write import save_picture
from llama_fast.demo.finetune import Comparison
from llama_fast.demo.kernels import Check
from llama_fast.eval.multiple_choice import Score

__all__ = ["accuracy", "kernel_errors", "loss_curves", "speed_and_memory"]

COLOUR = {"llama_fast": LLAMA_FAST, "torch": TORCH}
NAME = {"llama_fast": "llama_fast", "torch": "stock PyTorch"}
# Rings, so that both are visible if our dot is inside.
RING: dict = {"s": 60, "facecolors": "none", "edgecolors": TORCH, "linewidths": 1.8}
# A dot for "no error at all" has no place on a log scale; it is drawn at this value.
LEAST = 1e-9


def kernel_errors(checks: Sequence[Check], path: Path) -> None:
    """Draw forward and gradient errors of every check, with one panel per precision."""
    dtypes = list(dict.fromkeys(check.dtype for check in checks))
    rows = list(dict.fromkeys((check.op, check.what, check.backend) for check in checks))
    figure = Figure(figsize=(11, 1.5 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(dtypes), sharey=True, squeeze=False)[0]
    for panel, dtype in zip(panels, dtypes, strict=True):
        for check in checks:
            if check.dtype != dtype:
                continue
            middle = rows.index((check.op, check.what, check.backend))
            pairs = ((check.torch_forward, check.forward), (check.torch_backward, check.backward))
            for y, marker, (theirs, ours) in zip(
                (middle - 0.15, middle + 0.15), "os", pairs, strict=True
            ):
                if ours is None or theirs is None:  # an op without gradients
                    continue
                theirs, ours = max(theirs, LEAST), max(ours, LEAST)
                panel.plot([theirs, ours], [y, y], color=GREY, linewidth=1, zorder=1)
                panel.scatter(theirs, y, marker=marker, zorder=2, **RING)
                colour = LLAMA_FAST if check.ok else "#dc2626"
                panel.scatter(ours, y, 20, colour, marker=marker, zorder=3)
        panel.set(xscale="log", title=dtype, xlabel="largest error relative to float64")
        _whole_decades(panel, "x")
        for row in range(0, len(rows), 2):
            panel.axhspan(row - 0.5, row + 0.5, color="#f3f4f6", zorder=0)
        panel.set_ylim(-0.5, len(rows) - 0.5)
        style_axes(panel, "x")
    labels = [f"{op} ({backend})\n{what}" for op, what, backend in rows]
    panels[0].set_yticks(range(len(rows)), labels, fontsize=8)
    panels[0].invert_yaxis()
    handles = [
        panels[0].scatter([], [], marker=marker, label=f"{NAME[side]}, {what}", **style)
        for marker, what in (("o", "output"), ("s", "gradient"))
        for side, style in (("torch", RING), ("llama_fast", {"s": 20, "c": LLAMA_FAST}))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Rounding errors of the kernels (left is better)", color=INK, weight="bold")
    save_picture(figure, path, json.dumps([(op, what, backend) for op, what, backend in rows]))


def loss_curves(comparison: Comparison, path: Path) -> None:
    """Draw the loss curves of both sides, and their difference."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    stock, ours = comparison.of("torch")[0], comparison.of("llama_fast")[0]
    torch_losses, our_losses = stock.losses, ours.losses
    steps = range(1, len(torch_losses) + 1)
    top.plot(steps, our_losses, color=LLAMA_FAST, linewidth=5, alpha=0.45, label=NAME["llama_fast"])
    top.plot(steps, torch_losses, color=TORCH, linewidth=1.6, marker=".", label=NAME["torch"])
    for run, size in ((ours, 16), (stock, 8)):
        held_out = ([0, len(run.losses)], [run.held_out_before, run.held_out_after])
        label = "unseen text" if run is stock else None
        top.plot(*held_out, "*", color=COLOUR[run.side], markersize=size, label=label)
    top.set(ylabel="loss (nats per token)")
    top.set_title("Fine-tuning on BoolQ passages, same seed", color=INK, weight="bold")
    top.legend(frameon=False)
    apart = [max(abs(a - b), LEAST) for a, b in zip(our_losses, torch_losses, strict=True)]
    bottom.semilogy(steps, apart, color=INK, linewidth=1.2, marker=".")
    bottom.set(xlabel="step", ylabel="difference")
    _whole_decades(bottom, "y")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axes in (top, bottom):
        style_axes(axes, "y")
    save_picture(figure, path)


def speed_and_memory(comparison: Comparison, path: Path) -> None:
    """Draw tokens per second and peak memory; dots are single rounds."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for y, side in enumerate(("llama_fast", "torch")):
        runs = comparison.of(side)
        speed, peak = comparison.tokens_per_second(side), comparison.peak(side) / 1e9
        left.barh(y, speed, 0.6, color=COLOUR[side], alpha=0.85)
        right.barh(y, peak, 0.6, color=COLOUR[side], alpha=0.85)
        _inside(left, speed, y, f"{speed:,.0f}")
        _inside(right, peak, y, f"{peak:.2f} GB")
        if len(runs) > 1:
            left.scatter([comparison.rate(run) for run in runs], [y] * len(runs), 14, INK, zorder=3)
            right.scatter([run.peak / 1e9 for run in runs], [y] * len(runs), 14, INK, zorder=3)
    left.set_yticks([0, 1], [NAME["llama_fast"], NAME["torch"]])
    right.set_yticks([])
    left.set(title="Tokens per second (right is better)", xlim=(0, None))
    right.set(title="Peak memory while training (left is better)", xlim=(0, None))
    for axes in (left, right):
        axes.title.set(color=INK, weight="bold", size=11)
        axes.invert_yaxis()
        style_axes(axes, "x")
    save_picture(figure, path)


def accuracy(scores: Sequence[Score], path: Path) -> None:
    """Draw accuracy with its 95 % interval, and chance, one row per task."""
    figure = Figure(figsize=(8, 1.4 + 0.75 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for y, score in enumerate(scores):
        axes.barh(y, score.accuracy, 0.55, color=LLAMA_FAST, alpha=0.85)
        axes.errorbar(score.accuracy, y, xerr=1.96 * score.stderr, color=INK, capsize=5, zorder=3)
        axes.plot([score.chance] * 2, [y - 0.4, y + 0.4], "--", color=INK, zorder=4)
        axes.text(0.01, y, f"{score.accuracy:.1%}", color="white", va="center", weight="bold")
    axes.plot([], [], "--", color=INK, label="guessing")
    axes.errorbar([], [], xerr=[], color=INK, capsize=5, label="95 % interval")
    axes.set_yticks(range(len(scores)), [f"{s.task}\n{s.count} questions" for s in scores])
    axes.set(xlim=(0, 1), xlabel="questions answered rightly, length-normalised")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("SmolLM2-135M-Instruct, zero-shot", color=INK, weight="bold")
    axes.legend(frameon=False, loc="lower right")
    axes.invert_yaxis()
    style_axes(axes, "x")
    save_picture(figure, path)


def _whole_decades(axes: Axes, which: Literal["x", "y"]) -> None:
    """Let a log axis begin and end at powers of ten, and label only these."""
    low, high = getattr(axes, f"get_{which}lim")()
    decades = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
    getattr(axes, f"set_{which}lim")(decades)
    getattr(axes, f"{which}axis").set_minor_formatter(NullFormatter())


def _inside(axes: Axes, value: float, y: float, text: str) -> None:
    axes.text(value * 0.03, y, text, color="white", va="center", weight="bold")
