"""Colours and axes shared by every figure: llama_fast is teal, stock PyTorch orange."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes

__all__ = ["GREY", "GRID", "INK", "LLAMA_FAST", "SERIES", "TORCH", "style_axes"]

LLAMA_FAST, TORCH = "#0f766e", "#ea7a17"
INK, GREY, GRID = "#1f2937", "#9ca3af", "#e5e7eb"
# Of runs: without teal and orange, which have a meaning. Mostly those of Okabe & Ito (2008), which
# every kind of colour vision tells apart.
SERIES = ("#0072b2", "#cc79a7", "#56b4e9", "#000000", "#7d5c00")


def style_axes(axes: Axes, grid: Literal["x", "y", "both"] = "both") -> None:
    """Draw a pale grid below the data, no tick marks and no top and right border.

    Args:
        axes: the axes to change.
        grid: the axis whose ticks get grid lines.
    """
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, length=0)
