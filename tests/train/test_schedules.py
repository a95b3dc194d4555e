"""Learning rates against transformers' schedulers, and at the points that define them."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llama_fast.train.schedules import KINDS, Schedule


def theirs(name: str, steps: int, warmup: int, **options: object) -> list[float]:
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
    ("kind", "name", "options"),
    [
        ("cosine", "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("linear", "linear", {}),
        ("constant", "constant_with_warmup", {}),
    ],
)
def test_as_transformers_after_the_warm_up(kind: str, name: str, options: dict[str, float]) -> None:
    """Theirs warms up from a step at 0, which learns nothing; ours begins one step later."""
    schedule = Schedule(kind, steps=100, warmup=10, final=options.get("min_lr_rate", 0.0))
    expected = theirs(name, 100, 10, **options)
    assert [schedule(s) for s in range(10, 101)] == pytest.approx(expected[10:], abs=1e-12)
    assert [schedule(s - 1) for s in range(1, 11)] == pytest.approx(expected[1:11], abs=1e-12)


def test_warmup_stable_decay() -> None:
    """Flat until the last fifth; a quarter into that, the square root has taken a half."""
    schedule = Schedule("wsd", steps=1000, warmup=50, final=0.0, decay=0.2)
    assert {schedule(s) for s in range(49, 801)} == {1.0}
    assert schedule(850) == pytest.approx(0.5)
    assert schedule(1000) == 0.0


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 500),
    share=st.floats(0, 1),
    final=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_rises_then_falls_within_bounds(
    kind: str, steps: int, share: float, final: float, decay: float
) -> None:
    schedule = Schedule(kind, steps, int(share * steps), final, decay)
    values = [schedule(step) for step in range(steps + 2)]
    up, down = values[: schedule.warmup], values[max(0, schedule.warmup - 1) :]
    assert up == sorted(up) and all(0 < value <= 1 for value in up)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(down))
    assert min(down) >= min(final, 1.0) - 1e-12
    if kind != "constant" and schedule.warmup < steps:
        assert values[-1] == pytest.approx(final)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "kind: expected one of cosine, linear, wsd, constant, got 'cosin'"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"steps": 5, "warmup": 6}, "warmup: expected 0 <= warmup <= steps = 5, got 6"),
        ({"final": 1.5}, "final: expected 0 <= final <= 1, got 1.5"),
        ({"decay": -0.1}, "decay: expected 0 <= decay <= 1, got -0.1"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**options)  # type: ignore[arg-type]
