"""A run that is asked to stop ends its step, saves, and is resumed as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.run import TrainingRun
from llama_fast.train.stop_signals import StopSignals, TrainingStopped
from tests.paths import REPOSITORY

STEPS = 400


def config(out: Path, shards: str, **changes: Any) -> TrainConfig:
    """A run with all that has a state; its only checkpoints are those of stops and the end."""
    return TrainConfig(
        out=str(out),
        steps=STEPS,
        checkpoint_every=STEPS,
        log_every=STEPS,
        model=ModelOptions(overrides={"p_dropout": 0.1, "num_layers": 1}),
        data=DataOptions(train=shards, seq_len=32, micro_batch_size=1, num_workers=1, verify=False),
        optimizer=OptimizerOptions(ema_decay=0.9),
        **changes,
    )


def options(settings: TrainConfig) -> list[str]:
    return [
        f"--out={settings.out}", f"--steps={STEPS}", f"--checkpoint-every={STEPS}",
        f"--log-every={STEPS}", "--model.overrides={p_dropout: 0.1, num_layers: 1}",
        f"--data.train={settings.data.train}", "--data.seq-len=32", "--data.micro-batch-size=1",
        "--data.num-workers=1", "--data.verify=false", "--optimizer.ema-decay=0.9",
    ]  # fmt: skip


def saved_bits(out: Path, step: int) -> dict[str, bytes]:
    (file,) = (out / f"checkpoints/step-{step:08}").glob("*.safetensors")
    return {k: v.reshape(-1).view(torch.uint8).numpy().tobytes()
            for k, v in load_file(file).items()}  # fmt: skip


def steps_done(out: Path) -> int:
    metrics = out / "metrics.csv"
    return len(metrics.read_text().splitlines()) - 1 if metrics.exists() else 0


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments], cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def stopped(process: subprocess.Popen[str], out: Path, number: signal.Signals, after: int) -> str:
    """What a process prints that gets the signal, with its children, after a step."""
    while steps_done(out) < after and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    printed, _ = process.communicate()
    return printed


@pytest.mark.slow
def test_a_stopped_run_is_resumed_bit_for_bit(tmp_path: Path, shards: str) -> None:
    whole = config(tmp_path / "whole", shards)
    TrainingRun(whole, log=lambda line: None).train()
    settings = config(tmp_path / "stopped", shards)
    command = ["-m", "llama_fast.cli.main", "train", *options(settings)]
    done = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(command)
        out = Path(settings.out)
        printed = stopped(process, out, number, done + 5)
        assert process.returncode == 128 + number, printed
        assert "Traceback" not in printed
        lines = printed.strip().splitlines()
        assert any(line.startswith(f"{number.name}: ending this step") for line in lines)
        step = steps_done(out)
        assert done < step < STEPS
        assert lines[-1] == f"saved at step {step}; the same command goes on"
        done = step
    torch.set_num_threads(1)
    run = TrainingRun(settings, log=lambda line: None)
    assert run.step == done
    run.train()
    assert saved_bits(tmp_path / "stopped", STEPS) == saved_bits(tmp_path / "whole", STEPS)


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step(tmp_path: Path, shards: str) -> None:
    """Only one of the two gets the signal."""
    out = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "llama_fast.cli.main", "train", *options(config(out, shards))]
    process = start([*launcher, *command])
    while steps_done(out) < 5 and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if b"llama_fast.cli" in _command_line(int(pid))]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGTERM)
    printed, _ = process.communicate()
    assert f"saved at step {steps_done(out)}; the same command goes on" in printed, printed
    assert (out / f"checkpoints/step-{steps_done(out):08}/manifest.json").is_file()


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_validation_is_abandoned(tmp_path: Path, shards: str) -> None:
    """A signal within a validation does not wait for its end; the run's state is saved."""
    settings = config(tmp_path, shards, valid_every=2, valid_batches=10**6)
    settings.data.valid = shards
    lines: list[str] = []
    run = TrainingRun(settings, log=lines.append)
    validate = run.validate

    def validate_and_signal() -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate()

    run.validate = validate_and_signal  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped) as caught:
        run.train()
    assert (caught.value.signal, caught.value.step) == (signal.SIGTERM, 2)
    assert signal.getsignal(signal.SIGTERM) is before
    assert lines[-1] == "saved at step 2; the same command goes on"
    assert "step 2: validation not finished, because the run is to stop" in lines
    assert TrainingRun(settings, log=lines.append).step == 2


def test_a_signal_after_the_end_of_a_step_is_saved_too(tmp_path: Path, shards: str) -> None:
    settings = config(tmp_path, shards)
    run = TrainingRun(settings, log=lambda line: None)

    def signal_late() -> bool:  # asked once it is known that no checkpoint is due
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    run._save_failed = signal_late  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped) as caught:
        run.train()
    assert caught.value.step == 1
    assert TrainingRun(settings, log=lambda line: None).step == 1


def test_processes_finish_what_others_may_wait_for() -> None:
    """The signal may not have arrived at the others yet: they are in the same collectives."""
    done = []
    with StopSignals(lambda line: None, only_process=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.finishes(lambda: done.append(1)) and done
    with StopSignals(lambda line: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.finishes(lambda: done.append(2)) and done == [1]


def test_a_log_that_cannot_be_written_to_is_no_reason_to_end_at_once() -> None:
    def log(line: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    with StopSignals(log) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is signal.SIGINT


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    for only_process in (True, False):
        with StopSignals(lambda line: None, only_process=only_process) as stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # of a scheduler: the run is stopping already
            if only_process:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
            else:
                os.kill(os.getpid(), signal.SIGINT)
            assert stop.received is signal.SIGINT


def test_other_threads_take_no_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    entered = []

    def use() -> None:
        with StopSignals(print) as stop:
            entered.append(stop.received)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert entered == [None] and signal.getsignal(signal.SIGINT) is before
