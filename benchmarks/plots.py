"""Figures of the benchmark suite: llama_fast is teal, torch orange; a bar is always llama_fast."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from llama_fast._format import times
from llama_fast._plot_style import GREY, INK, LLAMA_FAST, TORCH, style_axes
from llama_fast._write import save_picture

from .cases import STEP, percent
from .implementation import OURS
from .report import PASS, SHORT, milliseconds, size
from .results import Result, Results

COLOUR = {
    OURS: LLAMA_FAST,
    "torch": TORCH,
    "torch-by-hand": "#7c2d12",
    "torch-nested": "#a16207",
    "torch.compile": "#7c3aed",
    "flex-attention": "#2563eb",
    "F.linear_cross_entropy": "#db2777",
    "transformers": "#56b4e9",
    "zentorch": "#dc2626",
    "flash-attn": "#1e3a8a",
    "liger-kernel": "#000000",
    "cut-cross-entropy": "#f9a8d4",
    "quack": "#65a30d",
}
ROW = 0.24  # inches
PAGE = 33  # rows, headings included, of a picture of about 1,200 pixels
NAMES = ("speedup", "limits", "memory", "window")
OP_NAME = {"llama_training": "Llama training step"}


def draw_all(results: Results, stem: Path) -> list[Path]:
    """Draw every figure for which `results` have data, as `<stem>-<name>.png`."""
    drawn = []
    for old in drawn_from(stem.with_suffix(".json")):  # may be of an earlier run with other cases
        old.unlink()
    pictures: dict[str, Callable[[Results, Path], list[Path]]] = {
        "speedup": speedup,
        "limits": limits,
        "memory": memory,
        "window": window,
    }
    for name, draw in pictures.items():
        path = stem.with_name(f"{stem.name}-{name}.png")
        drawn += draw(results, path)
    return drawn


def drawn_from(path: Path) -> list[Path]:
    """The pictures beside a file of results."""
    names = (f"{path.stem}-{name}" for name in NAMES)
    return [p for name in names for p in sorted(path.parent.glob(f"{name}.png"))
            + sorted(path.parent.glob(f"{name}-[0-9].png"))]  # fmt: skip


def source(results: Results) -> str:
    """What a picture shows: a hash of the measured times, bytes and limits."""
    shown = [asdict(result) for result in results.results], results.limits
    return hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode()).hexdigest()


def _pages(rows: list[Result], path: Path) -> list[tuple[Path, list[Result]]]:
    """Divide the rows of a picture among pages: `NAME.png`, `NAME-2.png`, ..., whole ops each."""
    groups: dict[str, list[Result]] = {}
    for result in rows:
        groups.setdefault(result.case.op, []).append(result)
    pages: list[list[Result]] = []
    used = math.inf
    for group in groups.values():
        used += len(group) + 1.6
        if used > PAGE:
            pages.append([])
            used = len(group) + 1.6
        pages[-1] += group
    more = [path.with_stem(f"{path.stem}-{number}") for number in range(2, len(pages) + 1)]
    return list(zip([path, *more], pages, strict=True))


def _label(result: Result) -> str:
    case = result.case
    if case.mode == STEP:  # it has too many sizes to show
        return f"{case.variant}, B={case.sizes['B']} S={case.sizes['S']}  {SHORT[case.dtype]}"
    return f"{case.title}  {SHORT[case.dtype]} {PASS[case.mode]}"


def _panels(rows: list[Result]) -> tuple[Figure, list[tuple[Axes, list[Result]]]]:
    """Create one panel per op, below each other, with heights in proportion to their rows."""
    groups: dict[str, list[Result]] = {}
    for result in rows:
        groups.setdefault(result.case.op, []).append(result)
    heights = [len(group) + 1.6 for group in groups.values()]
    figure = Figure(figsize=(10.5, 1.5 + ROW * sum(heights)), layout="constrained")
    axes = figure.subplots(len(groups), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    panels = []
    for panel, (op, group) in zip(axes, groups.items(), strict=True):
        panel.set_title(OP_NAME.get(op, op), loc="left", color=INK, weight="bold", size=10)
        panel.set_yticks(range(len(group)), [_label(result) for result in group], fontsize=8)
        panel.set_ylim(len(group) - 0.4, -0.6)
        style_axes(panel, "x")
        panel.spines["left"].set_visible(False)
        panel.tick_params(labelbottom=True, labelsize=8)
        panel.tick_params(axis="y", pad=46)  # room for `_figure`
        panels.append((panel, group))
    return figure, panels


def _legend(figure: Figure, names: list[str], filled: str) -> None:
    handles = [
        Line2D([], [], marker="s" if name == filled else "o", linestyle="", label=name,
               color=COLOUR.get(name, GREY), markersize=8 if name == filled else 6)
        for name in names
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(5, len(names)), frameon=False
    )


def _dots(panel: Axes, y: float, values: dict[str, float]) -> None:
    """Draw the baselines of a row at slightly different heights, so that none hides another."""
    step = 0.36 / max(1, len(values) - 1)
    top = y - step * (len(values) - 1) / 2
    for index, (implementation, value) in enumerate(values.items()):
        colour = COLOUR.get(implementation, GREY)
        at = value, top + index * step
        panel.scatter(*at, 34, colour, edgecolors="white", linewidths=0.7, zorder=3)


def _figure(panel: Axes, y: float, text: str) -> None:
    """Write the row's number between its label and the axis."""
    panel.annotate(
        text, (0, y), (-6, 0), ("axes fraction", "data"), "offset points", ha="right", va="center",
        fontsize=8, color=INK, weight="bold",
    )  # fmt: skip


def _present(rows: list[Result], ours: bool = True) -> list[str]:
    names = dict.fromkeys(side.implementation for result in rows for side in result.measured)
    return [name for name in COLOUR if name in names and (ours or name != OURS)]


def _log_ticks(axes: Axes, low: float, high: float, text: Callable[[float], str]) -> None:
    """Set a log axis with ticks at 1, 2, 5 times powers of ten (only 1 on long axes)."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([s * 10.0**d for d in decades for s in steps]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def speedup(results: Results, path: Path) -> list[Path]:
    """Draw the baselines' times divided by ours; the bar ends at the fastest baseline."""
    rows = [r for r in results.results if r.ours and r.baselines]
    if not rows:
        return []
    ratios = [r.ratio(side) or 1.0 for r in rows for side in r.baselines]
    low, high = min(0.8, *(0.8 * x for x in ratios)), max(2.0, *(1.6 * x for x in ratios))
    drawn = []
    for page, part in _pages(rows, path):
        figure, panels = _panels(part)
        for panel, group in panels:
            for y, result in enumerate(group):
                best = result.ratio(result.baselines[0]) or 1.0
                pale = {"alpha": 0.85} if best >= 1 else {"alpha": 0.35, "hatch": "////"}
                panel.barh(y, best - 1, 0.62, left=1, color=LLAMA_FAST, **pale)
                others = {s.implementation: result.ratio(s) or 1.0 for s in result.baselines}
                _dots(panel, y, others)
                _figure(panel, y, times(best))
            panel.axvline(1, color=INK, linewidth=1)
            _log_ticks(panel, low, high, lambda value: f"{value:g}×")
        _legend(figure, _present(part, ours=False), "")
        figure.suptitle(
            "Time of the baselines, in multiples of llama_fast's (right is better)\n"
            "the bar ends at the fastest baseline; hatched: llama_fast is slower",
            color=INK,
            weight="bold",
            size=11,
        )
        save_picture(figure, page, source(results))
        drawn.append(page)
    return drawn


def _shares(result: Result, results: Results) -> dict[str, float]:
    """Implementation -> percent of the machine's limit."""
    return {
        side.implementation: percent(result.case, side.median_ms / 1e3, results.limits) or 0.0
        for side in result.measured
    }


def limits(results: Results, path: Path) -> list[Path]:
    """Draw shares of the machine's limit: ours as a bar, baselines as dots."""
    rows = [
        r for r in results.results
        if r.ours and percent(r.case, r.ours.median_ms / 1e3, results.limits)
    ]  # fmt: skip
    if not rows:
        return []
    top = max(100.0, *(share for r in rows for share in _shares(r, results).values()))
    drawn = []
    for page, part in _pages(rows, path):
        figure, panels = _panels(part)
        for panel, group in panels:
            for y, result in enumerate(group):
                shares = _shares(result, results)
                ours = shares.pop(OURS)
                panel.barh(y, ours, 0.62, color=LLAMA_FAST, alpha=0.85)
                _figure(panel, y, f"{ours:.0f} %" if ours >= 1 else "<1 %")
                _dots(panel, y, shares)
            panel.axvline(100, color=INK, linewidth=1, linestyle="--")
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
        panels[0][0].set_xlim(0, top * 1.04)
        _legend(figure, _present(part), OURS)
        figure.suptitle(
            "Share of what the machine can do (right is better)\n"
            "matrix products: torch.mm's rate; the rest: copy or read bandwidth",
            color=INK,
            weight="bold",
            size=11,
        )
        save_picture(figure, page, source(results))
        drawn.append(page)
    return drawn


def memory(results: Results, path: Path) -> list[Path]:
    """Draw the memory that a step takes on top of its inputs."""
    rows = [r for r in results.results if r.ours and r.ours.extra_bytes]
    rows = [r for r in rows if any(side.extra_bytes for side in r.baselines)]
    if not rows:
        return []
    everything = [s.extra_bytes / 1e6 for r in rows for s in r.measured if s.extra_bytes]
    low = 10 ** math.floor(math.log10(min(everything)))
    drawn = []
    for page, part in _pages(rows, path):
        figure, panels = _panels(part)
        for panel, group in panels:
            for y, result in enumerate(group):
                known = [s for s in result.baselines if s.extra_bytes]
                _dots(panel, y, {s.implementation: (s.extra_bytes or 0) / 1e6 for s in known})
                assert result.ours and result.ours.extra_bytes
                value = result.ours.extra_bytes / 1e6
                panel.barh(y, value - low, 0.62, left=low, color=LLAMA_FAST, alpha=0.85)
                _figure(panel, y, size(result.ours.extra_bytes))
            high = max(everything) * 1.4
            _log_ticks(panel, low, high, lambda value: size(int(value * 1e6)))
        _legend(figure, _present(part), OURS)
        figure.suptitle(
            "Memory at the peak of a step, on top of its inputs (left is better)",
            color=INK,
            weight="bold",
            size=11,
        )
        save_picture(figure, page, source(results))
        drawn.append(page)
    return drawn


def window(results: Results, path: Path) -> list[Path]:
    """Draw time over length with a sliding window; a straight line means linear cost."""
    rows = [r for r in results.results if r.ours and "window" in r.case.options]
    modes = [
        mode for mode in PASS if sum(r.case.mode == mode for r in rows) > 1
    ]  # a line needs two points
    if not modes:
        return []
    figure = Figure(figsize=(4.6 * len(modes) + 1, 4.2), layout="constrained")
    panels = figure.subplots(1, len(modes), squeeze=False)[0]
    for panel, mode in zip(panels, modes, strict=True):
        chosen = sorted((r for r in rows if r.case.mode == mode), key=lambda r: r.case.sizes["S"])
        for name in _present(chosen):
            points = [
                (r.case.sizes["S"], side.median_ms)
                for r in chosen for side in r.measured if side.implementation == name
            ]  # fmt: skip
            width, order = (2.6, 3) if name == OURS else (1.6, 2)
            panel.plot(*zip(*points, strict=True), color=COLOUR.get(name, GREY), linewidth=width,
                       marker="o", zorder=order, label=name)  # fmt: skip
            last = points[-1]
            panel.annotate(
                milliseconds(last[1]), last, (5, 0), textcoords="offset points",
                fontsize=8, va="center", color=COLOUR.get(name, GREY),
            )  # fmt: skip
        lengths = [r.case.sizes["S"] for r in chosen]
        first = chosen[0].ours
        assert first
        panel.plot(
            lengths, [first.median_ms * s / lengths[0] for s in lengths],
            color=INK, linewidth=1, linestyle=":", zorder=1, label="linear",
        )  # fmt: skip
        panel.set(xscale="log", yscale="log", title=mode, xlabel="length S")
        panel.set_xlim(lengths[0] * 0.9, lengths[-1] * 1.45)
        panel.xaxis.set_major_locator(FixedLocator(lengths))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.title.set(color=INK, size=10)
        style_axes(panel)
    panels[0].legend(frameon=False, fontsize=9)
    case = rows[0].case
    figure.suptitle(
        f"Attention in a window of {case.options['window']}: time over length "
        f"({SHORT[case.dtype]}, H={case.sizes['H']}, D={case.sizes['D']})",
        color=INK,
        weight="bold",
        size=11,
    )
    save_picture(figure, path, source(results))
    return [path]
