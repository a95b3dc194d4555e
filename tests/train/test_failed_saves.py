"""A checkpoint that cannot be written raises an error in the next steps; no step is lost."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_fast.models.checkpoints.training import RunCheckpointError
from llama_fast.train.config import DataOptions, OptimizerOptions, ParallelOptions, TrainConfig
from llama_fast.train.metrics import StepMetrics, read_metrics
from llama_fast.train.run import TrainingRun
from tests.ranks import FORKED, on_ranks


def config(folder: Path, name: str, **changes: int) -> TrainConfig:
    return TrainConfig(
        out=str(folder / name),
        steps=30,
        checkpoint_every=10,
        device="cpu",
        data=DataOptions(train=str(folder / "shards"), seq_len=32, micro_batch_size=2),
        optimizer=OptimizerOptions(ema_decay=0.9),
        parallel=ParallelOptions(**changes),
    )


@pytest.fixture
def folder(random_shards: str) -> Path:
    return Path(random_shards).parent


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Limit files to 200 kB, like a full disk: a checkpoint has 1.4 MB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fail_first_save(run: TrainingRun) -> None:
    save = run.save

    def fail() -> None:
        run.save = save  # type: ignore[method-assign]
        with small_files():
            save()
            assert run.checkpoints._thread is not None
            run.checkpoints._thread.join()

    run.save = fail  # type: ignore[method-assign]


def steps(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def last_bits(out: Path) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for file in (out / "checkpoints/step-00000030").glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            part = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            found[name] = sorted([*found.get(name, []), part])
    return found


def test_space_is_free_again(folder: Path) -> None:
    """Step 10 cannot be written, step 11 can: nothing is lost, and the run resumes from it."""
    run = TrainingRun(config(folder, "failed"), log=lambda line: None)
    fail_first_save(run)
    with pytest.raises(
        RunCheckpointError, match=r"step-00000010: could not .*011 was written since"
    ):
        run.train()
    assert run.step == 11 and steps(folder / "failed") == ["step-00000011"]
    for name in ("failed", "whole"):
        TrainingRun(config(folder, name), log=lambda line: None).train()
    assert last_bits(folder / "failed") == last_bits(folder / "whole")
    found, whole = (read_metrics(folder / name / "metrics.csv") for name in ("failed", "whole"))
    assert [(s.step, s.loss) for s in found] == [(s.step, s.loss) for s in whole]


def test_no_space_later(folder: Path) -> None:
    run = TrainingRun(config(folder, "failed"), log=lambda line: None)
    take_step = run._train_step

    def after_the_save() -> StepMetrics:
        if run.step == 10:  # a slow disk would end the save in a later step
            assert run.checkpoints._thread is not None
            run.checkpoints._thread.join()
        return take_step()

    run._train_step = after_the_save  # type: ignore[method-assign]
    with (
        small_files(),
        pytest.raises(RunCheckpointError, match=r"step-00000010: could not .*intact$"),
    ):
        run.train()
    # Seen in the first step after the save had ended, not at the next checkpoint.
    assert run.step == 11 and steps(folder / "failed") == []


def test_no_space_at_the_end(folder: Path) -> None:
    run = TrainingRun(config(folder, "failed"), log=lambda line: None)
    while run.step < 29:
        run._train_step()
    with small_files(), pytest.raises(RunCheckpointError, match=r"step-00000030: could not be"):
        run.train()


def rank_fails(rank: int, folder: Path) -> None:
    """The disk of rank 0 alone is full: both processes end in the same step, with its state."""
    run = TrainingRun(config(folder, "failed", shard=2), log=lambda line: None)
    if rank == 0:
        fail_first_save(run)
    with pytest.raises(RunCheckpointError, match=r"step-00000010: could not .* was written since"):
        run.train()
    (folder / f"ended{rank}").write_text(json.dumps([run.step, steps(folder / "failed")]))
    for name in ("failed", "whole"):
        TrainingRun(config(folder, name, shard=2), log=lambda line: None).train()


def test_on_two_processes(folder: Path) -> None:
    on_ranks(2, rank_fails, folder, method=FORKED)
    ended = [json.loads((folder / f"ended{rank}").read_text()) for rank in range(2)]
    step, left = ended[0]
    assert ended[0] == ended[1] and 10 < step < 20 and left == [f"step-{step:08}"]
    assert last_bits(folder / "failed") == last_bits(folder / "whole")
