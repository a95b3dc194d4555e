"""Learning rates against transformers' schedulers, and at the points that define them."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llama_fast.train.schedules import LRSchedule, ScheduleName


def of_transformers(name: str, steps: int, warmup: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_scheduler(
        name, optimizer, warmup, steps, scheduler_specific_kwargs=options
    )
    found = []
    for _ in range(steps + 1):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("cosine", "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("linear", "linear", {}),
        ("constant", "constant_with_warmup", {}),
    ],
)
def test_as_transformers_after_the_warm_up(
    name: ScheduleName, theirs: str, options: dict[str, float]
) -> None:
    """Theirs warms up from a step at 0, which learns nothing; ours begins one step later."""
    schedule = LRSchedule(
        name, steps=100, warmup_steps=10, min_lr_ratio=options.get("min_lr_rate", 0.0)
    )
    expected = of_transformers(theirs, 100, 10, **options)
    assert [schedule(s) for s in range(10, 101)] == pytest.approx(expected[10:], abs=1e-12)
    assert [schedule(s - 1) for s in range(1, 11)] == pytest.approx(expected[1:11], abs=1e-12)


def test_warmup_stable_decay() -> None:
    """Flat until the last fifth; a quarter into that, the square root has taken a half."""
    schedule = LRSchedule("wsd", steps=1000, warmup_steps=50, min_lr_ratio=0.0, decay_ratio=0.2)
    assert {schedule(s) for s in range(49, 801)} == {1.0}
    assert schedule(850) == pytest.approx(0.5)
    assert schedule(1000) == 0.0


@given(
    name=st.sampled_from(get_args(ScheduleName)),
    steps=st.integers(1, 500),
    share=st.floats(0, 1),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_rises_then_falls_within_bounds(
    name: ScheduleName, steps: int, share: float, final: float, decay: float
) -> None:
    schedule = LRSchedule(name, steps, int(share * steps), final, decay)
    values = [schedule(step) for step in range(steps + 2)]
    up, down = values[: schedule.warmup_steps], values[max(0, schedule.warmup_steps - 1) :]
    assert up == sorted(up) and all(0 < value <= 1 for value in up)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(down))
    assert min(down) >= min(final, 1.0) - 1e-12
    if name != "constant" and schedule.warmup_steps < steps:
        assert values[-1] == pytest.approx(final)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr_schedule": "cosin"},
            "lr_schedule: expected one of cosine, linear, wsd, constant, got 'cosin'",
        ),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        (
            {"steps": 5, "warmup_steps": 6},
            "warmup_steps: expected 0 <= warmup_steps <= steps = 5, got 6",
        ),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio: expected 0 <= min_lr_ratio <= 1, got 1.5"),
        ({"decay_ratio": -0.1}, "decay_ratio: expected 0 <= decay_ratio <= 1, got -0.1"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRSchedule(**options)  # type: ignore[arg-type]
