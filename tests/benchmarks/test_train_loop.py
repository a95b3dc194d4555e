"""The training loops that `make bench-train` compares do the same work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llama_fast.cli.bench import suite

cases = suite("cases")
loop = suite("train_loop")
sides = suite("train_sides")

CASE = cases.cases("cpu", ["llama_training"], "float32", quick=True)[0]


def sides_in(precision: str) -> list[str]:
    """Those that can run: litgpt is not among what the tests install, and slow: once is enough."""
    litgpt = precision == "float32" and loop.LITGPT.is_dir()
    return [side for side in sides.SIDES if side != "litgpt" or litgpt]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_loop_has_the_same_losses(tmp_path: Path, precision: str) -> None:
    loop.prepare(tmp_path, CASE, 2)  # two batches, again and again: they are soon learned
    found = loop.measure(tmp_path, CASE, precision, sides_in(precision), 4, 1)
    assert len(found) >= 3
    for other in found:
        assert len(other.losses) == 4 + loop.WARM and other.peak > other.libraries > 0
        if other.side == loop.BARE:  # it does not clip: the same loss of the same weights alone
            assert other.losses[0] == found[1].losses[0]
            continue
        # A few roundings of a loss in float32, and one of a product in bfloat16.
        limit = 1e-6 if precision == "float32" else 2**-9
        assert loop.difference(found[1], other) < limit, other
    losses = found[1].losses
    assert losses[-1] < losses[0] - 0.02  # and the steps are taken


def test_a_loop_that_fails_is_named(tmp_path: Path) -> None:
    loop.prepare(tmp_path, CASE, 1)
    (tmp_path / "weights" / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"^bare step: "):
        loop.measure(tmp_path, CASE, "float32", ["bare step"], 1, 1)


def test_the_batches_are_full_rows(tmp_path: Path) -> None:
    loop.prepare(tmp_path, CASE, 3)
    task = sides.Task(str(tmp_path), CASE.sizes["B"], CASE.sizes["S"], "float32", 1)
    batches = task.batches()
    seen = set()
    for _ in range(3):
        batch = next(batches)
        rows = task.sequences(batch)
        assert rows.shape == (task.rows, task.length + 1)
        assert torch.equal(rows[:, :-1].reshape(1, -1), batch.tokens)
        assert torch.equal(rows[:, 1:].reshape(1, -1), batch.targets)
        assert batch.cu_seqlens.tolist() == [task.length * r for r in range(task.rows + 1)]
        seen.update(map(tuple, rows.tolist()))
    assert len(seen) == 3 * task.rows


def test_goals_say_what_was_missed() -> None:
    def made(side: str, ms: float, peak: int) -> object:
        return loop.Loop(side, [ms, 9 * ms, ms], [2.0], peak + 100, 100)

    lines = loop.goals(
        {
            "float32": [
                made("bare step", 90.0, 0),
                made("llama_fast", 100.0, 700),
                made("litgpt", 131.0, 1000),
                made("transformers", 120.0, 900),
            ]
        }
    )
    assert [line.count("missed") for line in lines] == [1, 0, 2]
    assert "90.0%" in lines[0] and "1.31×" in lines[1] and "70%" in lines[1]
