"""The estimate of the remaining time and the progress display."""

from __future__ import annotations

import io
import itertools
import time

import pytest
from rich.console import Console

from llama_fast.train.metrics import StepMetrics
from llama_fast.train.progress import ProgressDisplay, ThroughputMeter, facts, progress_display


def step(number: int, seconds: float = 0.5, joules: float | None = None) -> StepMetrics:
    return StepMetrics(
        number, 1000, 1000, 2.5, 1.0, 1e-3, seconds, mfu=0.4, memory=10**9, joules=joules
    )


def fed(pace: ThroughputMeter, count: int, slow: dict[int, float]) -> list[float]:
    now, left = time.perf_counter(), []
    for number in range(1, count + 1):
        seconds = slow.get(number, 0.5)
        now += seconds
        pace.add(step(number, seconds), now)
        left.append(pace.seconds_left)
    return left


def test_one_slow_step_does_not_change_the_remaining_time() -> None:
    even = fed(ThroughputMeter(1000), 100, {})
    bumpy = fed(ThroughputMeter(1000), 100, {60: 30.0})
    assert even[-1] == pytest.approx(450, rel=1e-3)
    assert bumpy[-1] == pytest.approx(even[-1], rel=1e-3)
    assert all(a > b for a, b in itertools.pairwise(even))


def test_remaining_time_includes_validation_and_saving() -> None:
    """Ten seconds of validation every 20 steps of half a second: twice the time."""
    pace, now = ThroughputMeter(400), time.perf_counter()
    for number in range(1, 201):
        now += 0.5 + (10 if number % 20 == 0 else 0)
        pace.add(step(number), now)
    assert pace.seconds_left == pytest.approx(200 * 1.0, rel=0.01)


def test_means_over_the_last_steps() -> None:
    pace = ThroughputMeter(10)
    pace.add(step(1, 1.0, joules=30.0))
    pace.add(step(2, 3.0, joules=50.0))
    assert pace.tokens_per_second == pytest.approx(500)
    assert pace.joules_per_token == pytest.approx(0.04)
    assert pace.mfu == pytest.approx(0.4)
    pace.add(step(3, 1.0))
    assert pace.joules_per_token is None


@pytest.mark.parametrize("width", [80, 120])
def test_the_display_fits_a_terminal(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=20, color_system=None)
    pace, shown = ThroughputMeter(200), ProgressDisplay(200, 0, console)
    pace.add(step(120), time.perf_counter() + 1)
    shown.update(step(120), pace)
    shown._live.refresh()
    shown.close()
    lines = [line for line in out.getvalue().replace("\r", "\n").split("\n") if "120/200" in line]
    assert lines and "60%" in lines[0] and "left" in lines[0]
    text = "loss 2.5000 · 2,000 tokens/s · MFU 40% · 1.00 GB · energy not measurable"
    assert text in out.getvalue()


@pytest.mark.parametrize(
    ("width", "joules", "text"),
    [
        (72, None, "loss 2.5000 · 2,000 tokens/s · MFU 40% · 1.00 GB · energy not measurable"),
        (71, None, "loss 2.5000 · 2,000 tokens/s · MFU 40% · 1.00 GB"),
        (60, 30.0, "loss 2.5000 · 2,000 tokens/s · 1.00 GB · 0.03 J/token"),
        (50, 30.0, "loss 2.5000 · 2,000 tokens/s · 0.03 J/token"),
        (37, None, "loss 2.5000 · 2,000 tokens/s"),
        (5, None, "loss 2.5000"),
    ],
)
def test_a_narrow_terminal_gets_the_important_parts_whole(
    width: int, joules: float | None, text: str
) -> None:
    pace = ThroughputMeter(200)
    pace.add(step(120, joules=joules))
    assert facts(step(120, joules=joules), pace, width) == text


def test_no_display_without_a_terminal() -> None:
    assert progress_display(10, 0) is None
