"""Plotted curves are those of the steps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from llama_fast.cli.main import main
from llama_fast.train.metrics import MetricsFile, StepMetrics
from llama_fast.train.plot import figure, smoothed


def run_of(folder: Path, losses: list[float]) -> Path:
    file = MetricsFile(folder / "metrics.csv", 0)
    for number, loss in enumerate(losses, 1):
        valid = loss + 0.1 if number % 10 == 0 else None
        file.add(StepMetrics(number, 500, 500, loss, 1.0, 1e-3, 0.25, valid))
    file.close()
    return folder


def test_the_curves_are_the_runs(tmp_path: Path) -> None:
    first = [5 / math.sqrt(n) for n in range(1, 101)]
    runs = [run_of(tmp_path / "a", first), run_of(tmp_path / "b", [2.0] * 40)]
    drawn = figure(runs, "tokens")
    loss, speed = drawn.axes[0], drawn.axes[1]
    raw, smooth, valid = loss.lines[:3]
    assert list(raw.get_ydata()) == first
    assert list(raw.get_xdata()) == [500.0 * n for n in range(1, 101)]
    assert len(smooth.get_ydata()) == 100
    assert list(valid.get_xdata()) == [5000.0 * n for n in range(1, 11)]
    assert {float(y) for y in speed.lines[3].get_ydata()} == {2000.0}
    (legend,) = [loss.get_legend()]
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a", "a, validation", "b", "b, validation"]
    assert loss.lines[0].get_color() != loss.lines[3].get_color()


def test_smoothing_is_a_mean_around_each_step() -> None:
    line = np.arange(200, dtype=np.float64)
    assert smoothed(line)[50:150] == pytest.approx(line[50:150])
    assert smoothed(np.array([1.0, math.nan, 3.0] * 40)).max() <= 3
    assert smoothed(np.array([4.0])) == pytest.approx([4.0])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = run_of(tmp_path / "a", [3.0, math.nan, 2.0]), tmp_path / "new/curves.png"
    assert main(["plot", str(run), "--out", str(out)]) == 0
    pixels = imread(out)
    assert pixels.shape[:2] == (910, 1300) and pixels.std() > 0.01
    assert main(["plot", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    MetricsFile(tmp_path / "b/metrics.csv", 0).close()
    assert main(["plot", str(tmp_path / "b"), "--out", str(out)]) == 2
    assert "expected at least one step" in capsys.readouterr().err
    assert main(["plot", str(run), "--out", "curves.txt"]) == 2
    assert "--out: expected a .png" in capsys.readouterr().err


def test_a_run_can_be_plotted_while_it_is_written(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", [3.0, 2.5])
    with (run / "metrics.csv").open("a") as file:
        file.write("3,500,5")
    assert len(figure([run]).axes[0].lines[0].get_ydata()) == 2
