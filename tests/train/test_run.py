"""Training runs: bitwise resume after a kill, gradient accumulation, errors, the command line."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from llama_fast.cli.main import main as cli
from llama_fast.data import DataError, ShardWriter, TokenShards
from llama_fast.train.checkpoints import CheckpointManager
from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.metrics import MEASURED, read_metrics
from llama_fast.train.run import TrainingRun
from tests.paths import REPOSITORY
from tests.train.events import curves
from tests.train.kills import config as killed_config


def make(out: Path, shards: str, **changes: object) -> TrainConfig:
    data = DataOptions(train=shards, seq_len=64, micro_batch_size=4)
    base = TrainConfig(out=str(out), steps=6, data=data, optimizer=OptimizerOptions(lr=3e-3))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def trained(config: TrainConfig, said: list[str] | None = None) -> TrainingRun:
    run = TrainingRun(config, log=(lambda line: None) if said is None else said.append)
    run.train()
    return run


def weights(run: TrainingRun) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def saved_bits(out: Path) -> dict[str, bytes]:
    (file,) = (out / "checkpoints/step-00000016").glob("*.safetensors")
    return {k: v.reshape(-1).view(torch.uint8).numpy().tobytes()
            for k, v in load_file(file).items()}  # fmt: skip


def without_measured(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


@pytest.mark.slow
def test_killed_runs_are_resumed_bit_for_bit(tmp_path: Path, shards: str) -> None:
    """kill -9 at 20 random moments, also within saves: weights, moments, average, random numbers,
    metrics and curves are those of a run that nobody killed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.train.kills", str(tmp_path), shards]
    done = subprocess.run(
        [*command, "20"], cwd=REPOSITORY, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left = [line.split()[1:] for line in done.stdout.splitlines()]
    assert len(left) == 20
    # The kills did fall all over: before the first checkpoint or after, and within saves.
    assert len({tuple(names) for names in left}) > 4
    assert any(name.endswith(".partial") for names in left for name in names)
    expected = saved_bits(tmp_path / "whole")
    for number in range(20):
        out = tmp_path / f"killed{number}"
        assert saved_bits(out) == expected, number
        assert without_measured(out) == without_measured(tmp_path / "whole"), number
        assert [step for step, _ in curves(out)["train/loss"]] == list(range(1, 17)), number


def test_a_checkpoint_has_the_whole_state(tmp_path: Path, shards: str) -> None:
    """State that is saved nowhere could be equal by chance in the test above; here it differs."""
    run = TrainingRun(killed_config(tmp_path / "a", shards), log=lambda line: None)
    run.train()
    found = run.checkpoints.latest()
    assert found is not None
    saved = {name: torch.zeros_like(tensor) for name, tensor in run._tensors()}
    CheckpointManager(tmp_path / "a/checkpoints").load(found, saved)
    for part in ("optimizer.exp_avg.", "optimizer.exp_avg_sq.", "average."):
        matching = [v for k, v in saved.items() if k.startswith(part)]
        assert matching and all(v.any() for v in matching)
    assert not torch.equal(saved["average.norm.weight"], saved["model.norm.weight"])
    torch.manual_seed(0)
    assert not torch.equal(saved["random.cpu.0"], torch.get_rng_state())  # dropout drew from it


def test_accumulation_is_independent_of_micro_batches(tmp_path: Path, shards: str) -> None:
    """Four sequences at once or one by one: equal loss and gradient, up to float32 rounding."""
    whole = trained(make(tmp_path / "a", shards))
    data = DataOptions(train=shards, seq_len=64, micro_batch_size=1)
    options = OptimizerOptions(lr=3e-3, gradient_accumulation_steps=4)
    split = trained(make(tmp_path / "b", shards, data=data, optimizer=options))
    for a, b in zip(*(read_metrics(tmp_path / x / "metrics.csv") for x in "ab"), strict=True):
        assert a.targets == b.targets
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert float((weights(whole) - weights(split)).norm() / weights(whole).norm()) < 1e-3


def test_learns(tmp_path: Path, shards: str) -> None:
    """From ln(257) = 5.55 nats to less than the entropy of single letters, 3.3."""
    config = make(tmp_path / "a", shards, steps=80, valid_every=75)
    config.data.valid = shards
    said: list[str] = []
    trained(config, said)
    assert [line.split("/")[0] for line in said if "validation" in line] == ["step 75", "step 80"]
    steps = read_metrics(tmp_path / "a/metrics.csv")
    assert [s.step for s in steps] == list(range(1, 81))
    assert steps[0].loss == pytest.approx(math.log(257), abs=0.1)
    valid = steps[-1].valid_loss
    assert valid is not None and valid < 3.3
    assert steps[-1].perplexity == pytest.approx(math.exp(valid))
    assert [s.step for s in steps if s.valid_loss is not None] == [75, 80]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_keeps_float32_weights(tmp_path: Path, shards: str, precision: str) -> None:
    full = trained(make(tmp_path / "a", shards, steps=20))
    mixed = trained(make(tmp_path / "b", shards, steps=20, precision=precision))
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    a, b = (read_metrics(tmp_path / x / "metrics.csv")[-1].loss for x in "ab")
    assert a != b and b == pytest.approx(a, rel=0.02)
    assert full.step == mixed.step == 20


def test_moving_average_of_the_weights(tmp_path: Path, shards: str) -> None:
    run = TrainingRun(
        make(tmp_path, shards, optimizer=OptimizerOptions(ema_decay=0.5)), log=lambda line: None
    )
    expected = run.model.norm.weight.detach().clone()
    for _ in range(3):
        run._train_step()
        expected = 0.5 * expected + 0.5 * run.model.norm.weight.detach()
    assert run.average is not None
    torch.testing.assert_close(run.average["norm.weight"], expected, rtol=1e-6, atol=0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, shards: str) -> None:
    config = make(tmp_path, shards, steps=9, checkpoint_every=1, keep_last=1)
    run = TrainingRun(config, log=lambda line: None)
    for _ in range(3):
        run._train_step()
    run.save()
    with torch.no_grad():
        run.model.norm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss nan, gradient norm nan in step 4: expected"):
        run.train()
    resumed = TrainingRun(config, log=lambda line: None)
    assert resumed.step == 3 and bool(weights(resumed).isfinite().all())
    resumed.train()
    assert resumed.step == 9


def test_a_step_that_is_not_finite_can_be_skipped(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    run = TrainingRun(make(tmp_path, shards, on_nan="skip"), log=said.append)
    before = weights(run).clone()
    loss = run._loss

    def bad(*args: Tensor, **options: object) -> Tensor:
        return loss(*args, **options) * float("nan")

    monkeypatch.setattr(run, "_loss", bad)
    run._train_step()
    assert torch.equal(weights(run), before)
    assert said == ["loss nan, gradient norm nan in step 1: step skipped"]
    monkeypatch.setattr(run, "_loss", loss)
    run.train()
    assert run.step == 6 and bool(weights(run).isfinite().all())


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, shards: str) -> None:
    """A file system of 3 MB, in a namespace of its own: two checkpoints fit, then no file at all.

    With room again, the same command goes on.
    """
    space = ["unshare", "--user", "--mount", "--map-root-user"]
    mount = 'mount -t tmpfs -o size=3m tmpfs "$1" && shift && exec "$@"'
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = [*space, "sh", "-c", mount, "sh", str(disk), "true"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs root, to mount a file system")
    command = [sys.executable, "-W", "ignore", "-m", "tests.train.full_disk", str(disk), shards]
    done = subprocess.run(
        [*probe[:-1], *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = [f"step-{step:08}" for step in range(2, 11, 2)]
    said = [line for line in done.stdout.splitlines() if ": code" in line]
    assert said[0] == f"first: code 2, {' '.join(names[:2])}"
    assert said[1] == f"first: code 0, {' '.join(names)}"
    assert said[2].startswith("second: code 2")
    checkpoint, row = done.stderr.splitlines()
    full = "could not be written ([Errno 28] No space left on device)"
    assert f"step-00000006: {full}; earlier checkpoints are intact" in checkpoint
    assert f"{full}; the checkpoints are intact" in row and "second/" in row


def test_another_configuration_is_refused(tmp_path: Path, shards: str) -> None:
    trained(make(tmp_path, shards, steps=2))
    other = make(tmp_path, shards, steps=2, optimizer=OptimizerOptions(lr=1.0))
    with pytest.raises(ValueError, match=r"out: .*optimizer.lr \(was 0.003, now 1.0\)"):
        TrainingRun(other, log=lambda line: None)
    said: list[str] = []
    same = make(tmp_path, shards, steps=2, log_every=1, keep_last=9)
    assert TrainingRun(same, log=said.append).train() is None
    assert "run is complete" in said[-1]


def test_damaged_data_is_named_before_the_run(tmp_path: Path, shards: str) -> None:
    source = TokenShards(shards)
    folder = tmp_path / "copy"
    with ShardWriter(folder, vocab_size=257, tokenizer={}) as writer:
        for document in range(len(source)):
            writer.add(source.read(document)[0].tolist())
    path = folder / "00000.tokens.npy"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"copy/00000.tokens.npy: missing or damaged shard"):
        TrainingRun(make(tmp_path / "run", str(folder)))
    assert not (tmp_path / "run").exists()


def test_too_little_validation_data_is_an_error_before_the_run(tmp_path: Path, shards: str) -> None:
    with ShardWriter(tmp_path / "few", vocab_size=257, tokenizer={}) as writer:
        writer.add([1, 2, 3])
    config = make(tmp_path / "run", shards)
    config.data.valid = str(tmp_path / "few")
    with pytest.raises(DataError, match="few: expected at least 4 sequences of 64"):
        TrainingRun(config)
    assert not (tmp_path / "run").exists()


def test_command_line(tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML, overridden by options; a stopped run is resumed."""
    file = tmp_path / "debug.yaml"
    file.write_text(f"steps: 4\nout: {tmp_path}/run\ndata:\n  train: {shards}\n  seq_len: 64\n")
    assert cli(["train", str(file), "--data.micro_batch_size", "2", "--log_every", "2"]) == 0
    said = capsys.readouterr().out
    heads = [line.split(":")[0] for line in said.splitlines() if line.startswith("step")]
    assert heads == ["step 2/4", "step 4/4"]
    last = said.splitlines()[-4:]
    assert last[0] == f"The model is in {tmp_path}/run. With it:"
    # Each command that it prints is one that the program takes.
    for line in last[1:]:
        program, name, *arguments = shlex.split(line, comments=True)
        assert program == "llama-fast"
        module = importlib.import_module(f"llama_fast.cli.{name}")
        module.COMMAND.parse(arguments, program)
    assert cli(["train", str(file), "--data.micro_batch_size", "2"]) == 0
    assert "step 4: the run is complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "config: no such file: no.yaml"),
        (["--data.train", "nowhere"], "data.train: no such folder: nowhere"),
        (["--steps", "0"], "steps: expected at least 1, got 0"),
        (
            ["--optimizer.lr_schedule", "cosine", "--optimizer.warmup_steps", "9999"],
            "optimizer.warmup_steps: expected 0 <=",
        ),
        (["--data.train", "{shards}", "--model.preset", "lama"], "no preset 'lama'; did you mean"),
        (
            ["--data.train", "{shards}", "--model.overrides", '{{"depth": 3}}'],
            "model.overrides: expec",
        ),
        (
            ["--data.train", "{shards}", "--model.overrides", '{{"vocab_size": 100}}'],
            "model.overrides: expected a vocabulary of at least the data's 257 tokens, got 100",
        ),
        (
            ["--data.train", "{shards}", "--model.overrides", '{{"ffn_dim": 10000000000000}}'],
            "out of memory while creating the model and its optimizer, which requested 2560000",
        ),
        (["--data.train", "{shards}", "--device", "cua"], "device: expected cpu, cuda or auto"),
    ],
)
def test_bad_options_are_one_line(
    tmp_path: Path,
    shards: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [argument.format(shards=shards) for argument in arguments]
    assert cli(["train", *given, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_unknown_options_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["train", "--stepz", "3"]) == 2
    error = "llama-fast: error: --stepz: no such option; did you mean --steps?\n"
    assert capsys.readouterr().err == error
    with pytest.raises(SystemExit, match="0"):
        cli(["train", "--help"])
    assert "Length of a packed sequence in tokens" in " ".join(capsys.readouterr().out.split())
    for option in ("--print-config", "--print_config"):
        with pytest.raises(SystemExit, match="0"):
            cli(["train", "--steps", "77", option])
        assert yaml.safe_load(capsys.readouterr().out) == dataclasses.asdict(TrainConfig(steps=77))


def test_training_starts_from_given_weights(tmp_path: Path, shards: str) -> None:
    first = trained(make(tmp_path / "a", shards, steps=1))
    from llama_fast.models import save

    save(first.model, tmp_path / "weights")
    options = ModelOptions(init_from=str(tmp_path / "weights"))
    run = TrainingRun(make(tmp_path / "b", shards, model=options), log=lambda line: None)
    assert torch.equal(weights(run), weights(first))
