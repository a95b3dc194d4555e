from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from llama_fast.demo.finetune import SIDES, TrainingError, compare, run_side
from llama_fast.demo.finetune_side import FinetuneSettings, batches

SETTINGS = FinetuneSettings("none", "none", "auto", 4, 2, 16, 1e-3, "float32", 0, 1)
PASSAGES = [f"passage {i} ends here" for i in range(20)]


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def first_batches(
    settings: FinetuneSettings, count: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(islice(batches(PASSAGES, characters, settings, [0]), count))


def test_batches_are_one_stream_of_shuffled_passages() -> None:
    got = first_batches(SETTINGS, 30)
    for tokens, targets in got:
        assert tokens.shape == targets.shape == (2, 16)
    stream = torch.cat([tokens.flatten() for tokens, _ in got])
    following = torch.cat([targets.flatten() for _, targets in got])
    assert torch.equal(stream[1:], following[:-1])  # each target is the token that comes next
    texts = "".join(map(chr, stream.tolist())).split("\0")[:20]
    assert texts != PASSAGES
    assert sorted(texts) == sorted(PASSAGES)  # each once before any comes again


def test_batches_depend_on_the_seed_alone() -> None:
    one, same = first_batches(SETTINGS, 3), first_batches(SETTINGS, 3)
    other = first_batches(replace(SETTINGS, seed=1), 3)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][0], other[0][0])


@pytest.mark.slow
def test_both_sides_train_alike(smollm2: Path, benchmarks: Path) -> None:
    """Two real processes, the real model, tiny batches: ours and stock PyTorch stay together."""
    paths = {"model": str(smollm2), "data": str(benchmarks)}
    settings = replace(
        SETTINGS, **paths, steps=3, batch=1, length=32, threads=2, learning_rate=3e-5
    )
    seen = []
    got = compare(settings, 1, lambda done, total, state: seen.append((done, total)))
    assert [run.side for run in got.runs] == list(SIDES)
    for run in got.runs:
        assert len(run.losses) == len(run.seconds) == 3
        assert run.held_out_after != run.held_out_before
        assert all(seconds > 0 for seconds in run.seconds)
        # Weights, gradients and two moments of 135 million numbers in float32.
        assert 4 * 4 * 134e6 < run.peak < 8e9
        assert 4 * 134e6 < run.resident < run.peak
    # Before the first update the only difference is rounding.
    first = [run.losses[0] for run in got.runs]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert got.largest_loss_difference() < 1e-2
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def test_a_failing_side_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"torch ended with exit code 1(.|\n)*no-model"):
        run_side("torch", replace(SETTINGS, model=str(tmp_path / "no-model")))
