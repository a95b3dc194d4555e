"""Resuming a run, and locking its folder."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llama_fast._lock import hold
from llama_fast.cli.main import main as cli
from llama_fast.models import LLaMA, LlamaConfig, save
from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.run import TrainingRun
from tests.paths import REPOSITORY
from tests.ranks import FORKED, on_ranks


@pytest.fixture
def shards(random_shards: str) -> str:
    return random_shards


def make(out: Path, shards: str, **changes: object) -> TrainConfig:
    data = DataOptions(train=shards, seq_len=32, micro_batch_size=2)
    base = TrainConfig(out=str(out), steps=6, checkpoint_every=2, device="cpu", data=data)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def weights(run: TrainingRun) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def stop_after(config: TrainConfig, steps: int) -> None:
    """Like a kill after some steps, with their checkpoints complete."""
    run = TrainingRun(config, log=lambda line: None)
    take = run._train_step

    def step() -> object:
        if run.step == steps:
            raise KeyboardInterrupt
        return take()

    run._train_step = step  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train()


def test_initial_weights_are_read_once(tmp_path: Path, shards: str) -> None:
    """They may be deleted or moved before a run is resumed; its result is bitwise the same."""
    shape = LlamaConfig(
        300, 32, 2, 1, ffn_dim=48, rope_factors=(1.0, 2.0, 2.0, 4.0, 4.0, 4.0, 8.0, 8.0)
    )
    save(LLaMA(shape), tmp_path / "weights.gguf", to="gguf")
    begin = ModelOptions(init_from=str(tmp_path / "weights.gguf"))
    options = OptimizerOptions(ema_decay=0.9)
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    config = make(out, shards, model=begin, optimizer=options)
    expected = TrainingRun(dataclasses.replace(config, out=str(whole)), log=lambda line: None)
    assert expected.model.config.rope_factors == shape.rope_factors
    expected.train()
    stop_after(config, 5)
    (tmp_path / "weights.gguf").unlink()
    # The newest is damaged: the one before it has the shape as well.
    (out / "checkpoints/step-00000004/state.json").write_text("")
    said: list[str] = []
    moved = dataclasses.replace(config, model=ModelOptions(init_from="moved.gguf"))
    again = TrainingRun(moved, log=said.append)
    assert again.step == 2 and again.model.config == expected.model.config
    assert any("weights.gguf, now moved.gguf; the run is resumed from its" in s for s in said)
    again.train()
    assert torch.equal(weights(again), weights(expected))
    with pytest.raises(ValueError, match=r"another configuration: model.init_from \(was 'moved.g"):
        TrainingRun(make(out, shards, optimizer=options), log=lambda line: None)
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"weights\.gguf"):
        TrainingRun(config, log=lambda line: None)


RUN = """
import sys, time
from llama_fast.train.config import DataOptions, TrainConfig
from llama_fast.train.run import TrainingRun
data = DataOptions(train=sys.argv[2], seq_len=32, micro_batch_size=2, num_workers=1)
config = TrainConfig(out=sys.argv[1], steps=6, device="cpu", data=data)
run = TrainingRun(config, log=lambda line: None)
run._train_step()  # its worker is there from now on
print("ready", flush=True)
time.sleep(600)
"""


def test_one_run_at_a_time(tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run is refused and changes nothing; after kill -9 the folder is unlocked."""
    out = tmp_path / "run"
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", RUN, str(out), shards],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        partial = out / "checkpoints" / ".step-00000002.partial"
        partial.mkdir(parents=True)
        command = ["train", "--data.train", shards, "--out", str(out), "--data.seq_len", "32"]
        assert cli(command) == 2
        said = capsys.readouterr().err
        assert f"error: out: {out} is in use by another run" in said and said.count("\n") == 1
        assert partial.is_dir() and not (out / "metrics.csv").exists()
    finally:
        child.send_signal(signal.SIGKILL)  # the worker lives on for some seconds
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    first = TrainingRun(make(out, shards), log=lambda line: None)
    first.train()
    assert TrainingRun(make(out, shards), log=lambda line: None).step == 6  # this process may again


def rank_is_refused(rank: int, folder: Path, shards: str) -> None:
    reason = "is in use by another run" if rank == 0 else "rank 0 failed; see its error"
    with pytest.raises(OSError, match=reason):
        TrainingRun(make(folder / "run", shards), log=lambda line: None)


def test_all_processes_of_a_second_run_end(tmp_path: Path, shards: str) -> None:
    hold(tmp_path / "run")
    on_ranks(2, rank_is_refused, tmp_path, shards, method=FORKED)


def test_a_file_system_without_locks(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert TrainingRun(make(tmp_path / "run", shards), log=lambda line: None).train() is not None


def test_a_finished_cosine_run_says_how_to_train_further(tmp_path: Path, shards: str) -> None:
    first = make(tmp_path / "first", shards, steps=2)
    TrainingRun(first, log=lambda line: None).train()
    with pytest.raises(ValueError, match=r"^steps: .* planned for 2 steps, got 4: the cosine") as e:
        TrainingRun(dataclasses.replace(first, steps=4), log=lambda line: None)
    advice = f"--out NEW --model.init-from {first.out}"
    assert advice in str(e.value)
    # What it says works.
    second = make(tmp_path / "NEW", shards, steps=2, model=ModelOptions(init_from=first.out))
    run = TrainingRun(second, log=lambda line: None)
    assert torch.equal(weights(run), weights(TrainingRun(first, log=lambda line: None)))
    run.train()
    constant = OptimizerOptions(lr_schedule="constant")
    third = make(tmp_path / "third", shards, steps=2, optimizer=constant)
    TrainingRun(third, log=lambda line: None).train()
    assert TrainingRun(dataclasses.replace(third, steps=4), log=lambda line: None).train()
