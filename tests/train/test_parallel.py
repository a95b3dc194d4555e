"""Runs on 2 and 4 processes have the result of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from llama_fast.cli.train import benchmark_scorer
from llama_fast.data import ShardWriter
from llama_fast.train.benchmarks import BenchmarkScore
from llama_fast.train.checkpoints import CheckpointManager
from llama_fast.train.config import (
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    ParallelOptions,
    TrainConfig,
)
from llama_fast.train.metrics import read_metrics, read_rows
from llama_fast.train.run import TrainingRun
from tests.paths import data_file
from tests.ranks import FORKED, on_ranks

STEPS = 3
# Each mode alone, and every combination that four processes allow.
MODES = {
    2: ("replicate", "shard", "context", "tensor"),
    4: ("replicate", "shard", "context", "tensor", "replicate shard", "replicate context",
        "replicate tensor", "shard context", "shard tensor", "context tensor"),
}  # fmt: skip


def sizes(world: int, mode: str) -> dict[str, int]:
    names = mode.split()
    return {"replicate": 1, **dict.fromkeys(names, 2 if len(names) == 2 else world)}


def config(folder: Path, name: str, world: int = 1, mode: str = "", **changes: Any) -> TrainConfig:
    mesh = sizes(world, mode) if mode else {}
    data_ranks = mesh.get("replicate", 1) * mesh.get("shard", 1)
    tied = changes.pop("tied", True)
    shape = {"num_layers": 2, "embed_dim": 64, "num_heads": 8, "num_kv_heads": 4, "head_dim": 8,
             "ffn_dim": 96, "tie_embeddings": tied}  # fmt: skip
    return TrainConfig(
        out=str(folder / name), **{"steps": STEPS, **changes}, device="cpu",
        valid_every=STEPS, valid_batches=1, checkpoint_every=100, log_every=100,
        model=ModelOptions(preset="debug", overrides=shape),
        data=DataOptions(train=str(folder / "shards"), valid=str(folder / "shards"), seq_len=64,
                         micro_batch_size=4 // data_ranks),
        optimizer=OptimizerOptions(gradient_accumulation_steps=2, max_grad_norm=0.1, z_loss=1e-3,
                                   ema_decay=0.5, lr_schedule="constant"),
        parallel=ParallelOptions(**mesh),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of many lengths; a class is never seen, so all of the vocabulary is in play."""
    found = tmp_path_factory.mktemp("parallel")
    g = torch.Generator().manual_seed(0)
    with ShardWriter(found / "shards", vocab_size=256, tokenizer={}) as writer:
        for i in range(200):
            writer.add(torch.randint(0, 255, (5 + 7 * i % 90,), generator=g).tolist())
    return found


def full(tensor: Tensor) -> Tensor:
    whole = getattr(tensor, "full_tensor", None)
    return tensor if whole is None else whole()


def gradients(run: TrainingRun) -> tuple[float, dict[str, Tensor]]:
    loss = run.mean_loss(run.accumulate_gradients().loss.item())
    found = {n: full(p.grad).clone() for n, p in run.model.named_parameters() if p.grad is not None}
    run.optimizer.zero_grad()
    return loss, found


def in_float64(run: TrainingRun) -> tuple[float, Tensor]:
    """The first step's loss and gradient."""
    run.model.double()
    loss, found = gradients(run)
    return loss, torch.cat([g.flatten() for g in found.values()])


def on_rank(rank: int, folder: Path, world: int, cases: list[tuple[str, dict[str, Any]]]) -> None:
    for mode, changes in cases:
        name = f"{world}-{mode}-{changes.get('tied', True)}"
        loss, found = gradients(
            TrainingRun(config(folder, f"{name}-gradients", world, mode, **changes))
        )
        run = TrainingRun(config(folder, name, world, mode, **changes))
        run.train()
        weights = get_model_state_dict(run.model, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            torch.save((loss, found, weights), folder / f"{name}.pt")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[bool, tuple[Any, ...]]:
    """Of one process, with and without tied embeddings."""
    found = {}
    for tied in (True, False):
        exact = in_float64(TrainingRun(config(folder, f"exact-{tied}", tied=tied)))
        mine = gradients(TrainingRun(config(folder, f"gradients-{tied}", tied=tied)))
        run = TrainingRun(config(folder, f"alone-{tied}", tied=tied))
        run.train()
        found[tied] = (*exact, *mine, run.model.state_dict())
    return found


UNTIED: dict[int, list[tuple[str, dict[str, Any]]]] = {
    2: [
        ("shard", {"tied": False, "activation_checkpointing": "full"}),
        ("tensor", {"tied": False, "activation_checkpointing": "selective"}),
    ],
    4: [("shard tensor", {"tied": False, "activation_checkpointing": "full"})],
}


@pytest.mark.parametrize("world", (2, 4))
def test_equals_one_process(
    folder: Path, alone: dict[bool, tuple[Any, ...]], tmp_path: Path, world: int
) -> None:
    """Loss and gradient err against float64 by no more than twice what one process does; three
    steps (accumulated, clipped, averaged) log the same losses and end with the same weights. One
    process goes on from what they saved."""
    (tmp_path / "shards").symlink_to(folder / "shards")
    cases = [*((mode, {}) for mode in MODES[world]), *UNTIED[world]]
    on_ranks(world, on_rank, tmp_path, world, cases, method=FORKED)
    for mode, changes in cases:
        tied = changes.get("tied", True)
        name = f"{world}-{mode}-{tied}"
        compare(tmp_path / name, folder / f"alone-{tied}", alone[tied])
        resumed = TrainingRun(
            config(tmp_path, name, tied=tied, steps=STEPS + 1), log=lambda line: None
        )
        _, _, weights = torch.load(tmp_path / f"{name}.pt")
        assert resumed.step == STEPS
        for key, weight in resumed.model.state_dict().items():
            assert torch.equal(weight, weights[key]), (name, key)
        last = resumed.train()
        assert last is not None and last.loss < 6


def goes_on_rank(rank: int, folder: Path, questions: str) -> None:
    """Four steps, once in one go and once stopped in the third and resumed."""
    for mode in MODES[2]:
        dropout = 0.1 if mode in ("replicate", "shard") else 0.0
        for name in ("whole", "stopped"):
            now = config(folder, f"{mode}-{name}", 2, mode, steps=4)
            # The checkpoint in the middle follows a validation, which has no backward pass.
            now.checkpoint_every = now.valid_every = 2
            now.eval_every, now.benchmarks = 4, [questions]
            now.model.overrides.update(vocab_size=258, p_dropout=dropout)
            now.data.num_workers = int(mode == "shard")  # each one takes seconds to start here
            run = TrainingRun(now, log=lambda line: None)
            if name == "stopped":
                stop_in_step(run, 3)
                run = TrainingRun(now, log=lambda line: None)
                assert run.step == 2
            run.train(benchmark_scorer(run))


def stop_in_step(run: TrainingRun, number: int) -> None:
    accumulate = run.accumulate_gradients

    def stopped() -> tuple[float, int, int, int]:
        if run.step == number - 1:
            raise KeyboardInterrupt
        return accumulate()

    run.accumulate_gradients = stopped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.train(benchmark_scorer(run))


def saved_parts(out: Path) -> dict[str, list[bytes]]:
    """Bytes of each tensor's parts; which file a part is in is not the same each time."""
    parts: dict[str, list[bytes]] = {}
    for file in sorted((out / "checkpoints/step-00000004").glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            parts.setdefault(name, []).append(
                tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return {name: sorted(found) for name, found in parts.items()}


def test_two_processes_resume_bit_for_bit(tmp_path: Path) -> None:
    """Weights, moments, average, random numbers and curves, with dropout, accumulation and workers.

    The benchmarks' scores are those that one process gives the same weights.
    """
    text = data_file("corpora/tinyshakespeare.txt").read_text()[:40_000]
    with ShardWriter(tmp_path / "shards", vocab_size=257, tokenizer={"path": "byte"}) as writer:
        for speech in text.split("\n\n"):
            writer.add([256, *speech.encode(), 256])
    pieces = [text[i : i + 40] for i in range(0, 40_000, 4_000)]
    questions = tmp_path / "forwards.jsonl"
    rows = ({"context": p[:12], "choices": [p[12:], p[12:][::-1]], "gold": 0} for p in pieces)
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    on_ranks(2, goes_on_rank, tmp_path, str(questions))
    for mode in MODES[2]:
        whole, stopped = (tmp_path / f"{mode}-{name}" for name in ("whole", "stopped"))
        assert saved_parts(stopped) == saved_parts(whole), mode
        scores = read_rows(whole / "benchmarks.csv", BenchmarkScore)
        assert [row.step for row in scores] == [4]
        assert scores == read_rows(stopped / "benchmarks.csv", BenchmarkScore)
        # As one process: the checkpoint is put together again.
        alone = config(tmp_path, f"{mode}-stopped", steps=4)
        alone.benchmarks = [str(questions)]
        saved = CheckpointManager(stopped / "checkpoints").latest()
        assert saved is not None
        alone.model.overrides = saved.state["config"]["model"]["overrides"]
        run = TrainingRun(alone, log=lambda line: None)
        score_benchmarks = benchmark_scorer(run)
        assert score_benchmarks is not None and score_benchmarks(run.model, 4) == scores


def compare(ours_in: Path, alone_in: Path, alone: tuple[Any, ...]) -> None:
    loss, found, weights = torch.load(ours_in.with_suffix(".pt"))
    exact_loss, exact, one_loss, one, one_weights = alone
    ours = torch.cat([found[name].flatten() for name in one]).double()
    single = torch.cat([one[name].flatten() for name in one]).double()
    mode = ours_in.name
    assert (ours - exact).norm() <= 2 * (single - exact).norm(), mode
    rounding = 2**-24 * abs(exact_loss)
    assert abs(loss - exact_loss) <= 2 * max(abs(one_loss - exact_loss), rounding), mode
    steps, expected = (read_metrics(path / "metrics.csv") for path in (ours_in, alone_in))
    for mine, theirs in zip(steps, expected, strict=True):
        assert (mine.tokens, mine.targets, mine.pairs) == (
            theirs.tokens, theirs.targets, theirs.pairs
        ), mode  # fmt: skip
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-5), mode
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4), mode
    assert steps[-1].valid_loss == pytest.approx(expected[-1].valid_loss, rel=1e-5), mode
    assert weights.keys() == one_weights.keys()
    for name, weight in one_weights.items():
        # Adam divides by the gradient's size: where that is next to nothing its sign is rounding,
        # so single numbers may differ by the learning rate, but not many.
        difference = (weights[name] - weight).norm()
        assert difference <= 1e-2 * STEPS * 1e-3 * weight.numel() ** 0.5, (mode, name)
