"""Plots the curves of `train_proof`: the whole runs, and the comparison with PyTorch's ops."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llama_fast._plot_style import INK, LLAMA_FAST, TORCH, style_axes
from llama_fast._write import save_picture
from llama_fast.train.plot import smoothed

# A difference of nothing has no place on a log scale.
LEAST = 1e-7


def source(found: dict[str, dict[str, Any]]) -> str:
    """What the picture shows: a hash of the curves."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw each corpus: left the whole run, right the compared first steps and their difference."""
    figure = Figure(figsize=(10, 4.2 * len(found)), layout="constrained")
    rows = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
    ours, stock = LLAMA_FAST, TORCH
    for row, (name, one) in zip(rows, found.items(), strict=True):
        panels = row.subplot_mosaic(
            [["whole", "first"], ["whole", "apart"]], width_ratios=(1.4, 1), height_ratios=(2, 1)
        )
        left, right, below = panels["whole"], panels["first"], panels["apart"]
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
            f"first {len(first)} steps: at most {one['apart']['ours']:.2g} nats apart",
            color=INK,
            fontsize=10,
        )
        apart = np.abs(np.array([one["ours"], one["nudged"]]) - np.array(one["stock"]))
        apart = np.maximum(apart, LEAST)
        label = "kernels and PyTorch's ops"
        below.semilogy(first, apart[0], color=ours, linewidth=1.4, label=label)
        label = "PyTorch's ops, nudged weights"
        below.semilogy(first, apart[1], color=stock, linewidth=1.4, linestyle=":", label=label)
        below.set(xlabel="step", ylabel="difference (nats)")
        below.legend(frameon=False, fontsize=7, loc="upper left")
        left.set(xlabel="step")
        for axes in (left, right):
            axes.set(ylabel="loss (nats per token)")
            axes.legend(frameon=False)
        for axes in panels.values():
            style_axes(axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path, source(found))
