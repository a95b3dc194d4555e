"""What a run logs: curves, scores, a record, a trace, advice."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch

from llama_fast._out_of_memory import is_out_of_memory
from llama_fast.cli.main import main as cli
from llama_fast.cli.train import benchmark_scorer
from llama_fast.data import DataError, TokenShards
from llama_fast.models import LlamaConfig
from llama_fast.train.benchmarks import BenchmarkScore
from llama_fast.train.config import DataOptions, OptimizerOptions, TrainConfig
from llama_fast.train.metrics import read_metrics, read_rows
from llama_fast.train.out_of_memory import explain
from llama_fast.train.record import add_entry, code_sha256, entry
from llama_fast.train.run import TrainingRun
from llama_fast.train.run_logger import RunLogger
from llama_fast.train.trackers import scalars
from tests.paths import REPOSITORY, data_file
from tests.train.events import curves


def make(out: Path, shards: str, **changes: object) -> TrainConfig:
    data = DataOptions(train=shards, seq_len=64, micro_batch_size=4)
    base = TrainConfig(out=str(out), steps=6, data=data, optimizer=OptimizerOptions(lr=3e-3))
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def trained(config: TrainConfig) -> list[str]:
    said: list[str] = []
    run = TrainingRun(config, log=said.append)
    run.train(benchmark_scorer(run))
    return said


def stop_after(config: TrainConfig, steps: int) -> None:
    """Like a kill: a run that ends without a checkpoint of its last step."""
    run = TrainingRun(config, log=lambda line: None)
    take, taken = run._train_step, 0

    def step() -> object:
        nonlocal taken
        if taken == steps:
            raise KeyboardInterrupt
        taken += 1
        return take()

    run._train_step = step  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train(benchmark_scorer(run))


def test_tensorboard_has_each_step_once_over_a_resume(tmp_path: Path, shards: str) -> None:
    config = make(tmp_path, shards, steps=12, checkpoint_every=4, valid_every=6)
    config.data.valid = shards
    stop_after(config, 7)
    assert [step for step, _ in curves(tmp_path)["train/loss"]] == list(range(1, 8))
    assert len(trained(config)) > 0  # from step 4 on: 5, 6 and 7 are done again
    found, steps = curves(tmp_path), read_metrics(tmp_path / "metrics.csv")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13))
    for step, (_, value) in zip(steps, found["train/loss"], strict=True):
        assert value == pytest.approx(step.loss, rel=1e-6)
    assert [step for step, _ in found["valid/perplexity"]] == [6, 12]
    assert found["valid/perplexity"][1][1] == pytest.approx(math.exp(steps[-1].valid_loss or 0))
    assert set(scalars(steps[-1])) == set(found)


def test_steps_are_measured(tmp_path: Path, shards: str) -> None:
    said = trained(make(tmp_path, shards))
    steps = read_metrics(tmp_path / "metrics.csv")
    for step in steps:
        assert step.memory is not None and 5e7 < step.memory < 1e11
        assert step.mfu is not None and 0 < step.mfu < 3
        # Rows are full of whole and cut documents: a pair a token at least, none across.
        assert step.tokens <= step.pairs <= step.tokens * 65 // 2
        assert (step.joules is None) == ("energy: not measurable" in said[0])
    assert "MFU: share of" in said[0] and "measured here, float32" in said[0]
    assert "MFU" in said[-1] and "GB" in said[-1]


def test_a_record_of_every_start(tmp_path: Path, shards: str) -> None:
    config = make(tmp_path, shards, checkpoint_every=2)
    stop_after(config, 3)
    trained(config)
    record = json.loads((tmp_path / "run.json").read_text())
    first, second = record["starts"]
    assert (first["after_step"], second["after_step"]) == (0, 2)
    assert first["config_sha256"] == second["config_sha256"]
    assert first["config"] == dataclasses.asdict(config)
    index = json.loads((Path(shards) / "index.json").read_text())
    assert first["data"]["train"]["content_sha256"] == index["content_sha256"]
    assert first["code"]["sha256"] == code_sha256()
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataError, match=r"run.json: expected the record of a run"):
        add_entry(tmp_path, entry(config, TokenShards(shards), None, 6))


def test_the_hash_of_code_follows_the_code(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part/a.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("not code")
    before = code_sha256(tmp_path)
    (tmp_path / "notes.txt").write_text("still not code")
    assert code_sha256(tmp_path) == before
    (tmp_path / "part/a.py").write_text("x = 2\n")
    after = code_sha256(tmp_path)
    (tmp_path / "part/a.py").rename(tmp_path / "part/b.py")
    assert len({before, after, code_sha256(tmp_path)}) == 3


def test_benchmarks_are_scored_during_training(tmp_path: Path, shards: str) -> None:
    """Text of the training data against the same text reversed: learned in 60 steps."""
    text = Path(data_file("corpora/tinyshakespeare.txt")).read_text()
    pieces = [text[i : i + 40].strip() for i in range(0, 40_000, 1_000)]
    file = tmp_path / "forwards.jsonl"
    rows = [
        {"context": piece[:12], "choices": [piece[12:][::-1], piece[12:]], "gold": 1}
        for piece in pieces
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    config = make(out, shards, steps=60, benchmarks=[str(file)], eval_every=20, checkpoint_every=25)
    stop_after(config, 45)
    said = trained(config)
    scores = read_rows(out / "benchmarks.csv", BenchmarkScore)
    assert [row.step for row in scores] == [20, 40, 60]
    assert {(row.benchmark, row.questions, row.chance) for row in scores} == {("forwards", 40, 0.5)}
    assert scores[-1].accuracy > 0.8
    assert [step for step, _ in curves(out)["benchmarks/forwards"]] == [20, 40, 60]
    assert any("forwards" in line and "guessing: 50.0%" in line for line in said)
    # Scoring does not use the random state and leaves the model in training mode.
    trained(make(tmp_path / "silent", shards, steps=60))
    a, b = (read_metrics(p / "metrics.csv") for p in (out, tmp_path / "silent"))
    assert [s.loss for s in a] == [s.loss for s in b]


def test_benchmarks_without_a_scorer(tmp_path: Path, shards: str) -> None:
    run = TrainingRun(make(tmp_path / "run", shards, benchmarks=["a.jsonl"]), log=lambda line: None)
    with pytest.raises(ValueError, match=r"score_benchmarks: expected a scorer .* got None"):
        run.train()
    assert run.step == 0


def test_questions_that_are_too_long_are_an_error_at_the_start(tmp_path: Path, shards: str) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"context": "a" * 300, "choices": ["b", "c"], "gold": 0}) + "\n")
    with pytest.raises(ValueError, match="max_seq_len = 256 tokens, long has one of 302: long-1"):
        trained(make(tmp_path / "run", shards, benchmarks=[str(file)]))


def test_profile_writes_a_trace_and_a_table(tmp_path: Path, shards: str) -> None:
    said = trained(make(tmp_path, shards, profile_steps=2))
    with gzip.open(tmp_path / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert "llama_fast::attention" in names
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 2
    table = said[said.index(next(line for line in said if "trace.json.gz" in line)) + 1 :]
    assert table[0].split() == ["op", "share", "ms", "calls"]
    shares = [float(line.split()[-3].rstrip("%")) for line in table[1:11]]
    # Of a hundred ops at most, the ten that take the most.
    assert shares == sorted(shares, reverse=True) and 10 <= sum(shares) <= 100.5
    short = trained(make(tmp_path / "short", shards, profile_steps=2, steps=2))
    assert any("no trace" in line for line in short)


PROVOKE = """
import re, resource, sys
from pathlib import Path
from llama_fast.cli.main import main
from llama_fast.train.run import TrainingRun
take = TrainingRun._train_step
def step(run):
    if run.step == 2:
        size = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        limit = (size << 10) + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return take(run)
TrainingRun._train_step = step
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, to limit the address space")
def test_a_step_that_does_not_fit(tmp_path: Path, shards: str) -> None:
    """The system refuses memory in the third step: one line names settings that would help."""
    command = ["train", "--data.train", shards, "--data.seq_len", "64",
               "--data.micro_batch_size", "1500", "--out", str(tmp_path), "--steps", "4",
               "--checkpoint_every", "1"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROVOKE, *command],
        # Memory that the second step gave back to the system, or the third would have it still.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("llama-fast: error")]
    assert "out of memory in step 3" in line and "Traceback" not in done.stderr
    assert "data.micro_batch_size 1500 x data.seq_len 64 = 96,000 tokens in float32" in line
    assert "data.micro_batch_size 750 with optimizer.gradient_accumulation_steps 2" in line
    assert "precision bfloat16" in line
    # Nothing is lost: the checkpoint of the second step is there.
    assert len(read_metrics(tmp_path / "metrics.csv")) == 2
    assert (tmp_path / "checkpoints/step-00000002").is_dir()


def test_advice_fits_the_settings(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has")
    assert is_out_of_memory(error) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(None)
    config = make(tmp_path, "shards", precision="bfloat16")
    config.data.micro_batch_size, config.optimizer.ema_decay = 1, 0.99
    text = explain(error, config, LlamaConfig.preset("smollm2-135m"), 11)
    assert "step 12, which requested 2.50 GiB" in text
    assert "2.69 GB for the weights, gradients and moments of 134.5 M parameters" in text
    assert "optimizer.ema_decay null" in text
    assert "data.micro_batch_size 0" not in text and "precision bfloat16" not in text


def test_logging_takes_less_than_a_twentieth_of_a_step(tmp_path: Path, shards: str) -> None:
    config = make(tmp_path, shards, steps=60, log_every=1)
    config.data.micro_batch_size = 32
    run = TrainingRun(config, log=lambda line: None)
    run.model.train()
    bare, around = [], []
    logger = RunLogger(
        config, run.model.config, run.shards, None, run.parallel, 0, lambda line: None
    )
    with logger:
        while run.step < config.steps - 1:
            begin = time.perf_counter()
            step = logger.measure(run._train_step)
            logger.add(step)
            around.append(time.perf_counter() - begin - step.seconds)
            bare.append(step.seconds)
    assert median(around) < 0.05 * median(bare)


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_trackers_that_are_not_installed_are_named(
    package: str, tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    options = ["--data.train", shards, "--out", str(tmp_path), "--report-to", package]
    assert cli(["train", *options]) == 2
    said = capsys.readouterr().err
    assert f"report_to: expected the package {package} to be installed" in said


def test_wandb_offline(tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(make(tmp_path, shards, report_to="wandb"))
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert b"train/loss" in content
    assert json.loads((tmp_path / "run.json").read_text())["id"] in log.name


def test_trackio_on_this_machine(
    tmp_path: Path, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed")
    trained(make(tmp_path / "run", shards, report_to="trackio"))
    import sqlite3

    (database,) = (tmp_path / "trackio").glob("llama_fast*.db")
    rows = sqlite3.connect(database).execute("select step, metrics from metrics").fetchall()
    assert sorted(step for step, _ in rows) == [1, 2, 3, 4, 5, 6]
