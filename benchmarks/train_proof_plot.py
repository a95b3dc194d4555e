"""Plots the curves of `train_proof`: the whole runs, and the comparison with PyTorch's ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llama_fast._plot_style import INK, LLAMA_FAST, TORCH, style_axes
from llama_fast._write import save_picture
from llama_fast.train.plot import smoothed


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw two panels per corpus: left the whole run, right the compared first steps."""
    figure = Figure(figsize=(10, 3.6 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False, width_ratios=(1.4, 1))
    ours, stock = LLAMA_FAST, TORCH
    for (left, right), (name, one) in zip(rows, found.items(), strict=True):
        curve = np.array(one["curve"])
        steps = np.arange(1, len(curve) + 1)
        left.plot(steps, curve, color=ours, alpha=0.22, linewidth=0.8)
        left.plot(steps, smoothed(curve), color=ours, linewidth=1.8, label="training")
        if one["valid_curve"]:
            at, loss = zip(*one["valid_curve"], strict=True)
            left.plot(at, loss, "o:", color=INK, markersize=5, linewidth=0.8, label="held out")
        left.set_title(
            f"{name}: {one['valid_bits_per_byte']:.3f} bits per byte in "
            f"{one['seconds_to_train'] / 60:.1f} minutes (n-grams: {one['bar']:.3f})",
            color=INK,
            fontsize=10,
        )
        first = np.arange(1, len(one["stock"]) + 1)
        right.plot(first, one["stock"], color=stock, linewidth=5, alpha=0.5, label="PyTorch's ops")
        right.plot(first, one["ours"], color=ours, linewidth=1.4, label="llama_fast's kernels")
        right.set_title(
            f"the same curve: at most {one['apart']['ours']:.0e} nats apart",
            color=INK,
            fontsize=10,
        )
        for axes in (left, right):
            axes.set(xlabel="step", ylabel="loss (nats per token)")
            axes.legend(frameon=False)
            style_axes(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path)
