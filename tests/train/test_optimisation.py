"""What makes a step cheaper or steadier, and leaves what it computes as it is."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llama_fast.data import ShardWriter
from llama_fast.data.loader import IGNORE
from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.metrics import read_metrics
from llama_fast.train.parallel import clip_gradients, gradient_norm
from llama_fast.train.run import TrainingRun
from tests.paths import data_file


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tinyshakespeare's first 100,000 characters, a speech a document."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    text = data_file("corpora/tinyshakespeare.txt").read_text()[:100_000]
    with ShardWriter(folder, vocab_size=257, tokenizer={"path": "byte"}) as writer:
        for speech in text.split("\n\n"):
            writer.add([256, *speech.encode(), 256])
    return str(folder)


def make(out: Path, shards: str, **changes: Any) -> TrainingRun:
    config = TrainConfig(
        out=str(out),
        steps=8,
        model=ModelOptions(overrides={"p_dropout": 0.1}),
        data=DataOptions(train=shards, seq_len=64, micro_batch_size=4),
        optimizer=OptimizerOptions(lr=3e-3),
    )
    return TrainingRun(dataclasses.replace(config, **changes), log=lambda line: None)


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(op.overloadpacket)] += 1
        return op(*args, **(kwargs or {}))


def test_activations_computed_again_are_the_same_bits(tmp_path: Path, shards: str) -> None:
    """Dropout included. "selective" repeats no product and no attention, "full" repeats both."""
    calls, gradients = {}, {}
    for mode in ("none", "selective", "full"):
        run = make(tmp_path / mode, shards, activation_checkpointing=mode)
        run.model.train()
        with Calls() as seen:
            loss = run.accumulate_gradients().loss.item()
        grads = [p.grad.flatten() for p in run.model.parameters() if p.grad is not None]
        gradients[mode] = torch.cat([torch.tensor([loss]), *grads])
        calls[mode] = seen.count
    for mode in ("selective", "full"):
        assert torch.equal(gradients[mode], gradients["none"]), mode
    products, attention = "aten.mm", "llama_fast.attention"
    layers, linear = 2, 7
    none = calls["none"]
    assert none[attention] == layers
    assert calls["selective"][attention] == layers
    assert calls["selective"][products] == none[products]
    assert calls["full"][attention] == 2 * layers
    # The last product of a block is not needed by anything's backward pass.
    assert none[products] + (linear - 1) * layers <= calls["full"][products]
    assert calls["selective"]["llama_fast.rms_norm"] > none["llama_fast.rms_norm"]


@pytest.mark.slow
@pytest.mark.compile
def test_compiled_runs_have_the_same_curve(tmp_path: Path, shards: str) -> None:
    """Within float32's rounding, over batches of different lengths."""
    plain = ModelOptions(overrides={"num_layers": 1})
    for name, compiled in (("eager", False), ("compiled", True)):
        make(tmp_path / name, shards, model=plain, compile=compiled).train()
    eager, ours = (read_metrics(tmp_path / x / "metrics.csv") for x in ("eager", "compiled"))
    assert len({step.tokens for step in eager}) > 1
    for a, b in zip(eager, ours, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-3)


def test_z_loss_is_the_mean_square_of_log_denominators(tmp_path: Path, shards: str) -> None:
    weight = 1e-2
    options = OptimizerOptions(z_loss=weight)
    plain, ours = (make(tmp_path / n, shards, model=ModelOptions(), **changes)
                   for n, changes in (("plain", {}), ("ours", {"optimizer": options})))  # fmt: skip
    batch = next(plain._loader(plain.shards, shuffle=True))
    with torch.no_grad():
        logits: Tensor = plain.model(batch.tokens, cu_seqlens=batch.cu_seqlens).double()
    lse = logits.logsumexp(-1)[batch.targets != IGNORE]
    expected = plain.accumulate_gradients().loss.item() + weight * float(lse.square().mean())
    assert ours.accumulate_gradients().loss.item() == pytest.approx(expected, rel=1e-6)


def test_steps_follow_the_schedule(tmp_path: Path, shards: str) -> None:
    """WSD: up, level, and down with one minus the root; as metrics.csv shows it."""
    options = OptimizerOptions(
        lr=1e-2, warmup_steps=2, lr_schedule="wsd", decay_ratio=0.25, min_lr_ratio=0.0
    )
    make(tmp_path, shards, optimizer=options).train()
    shares = [step.lr / 1e-2 for step in read_metrics(tmp_path / "metrics.csv")]
    assert shares == pytest.approx([0.5, *[1.0] * 6, 1 - math.sqrt(0.5)])


def test_gradients_are_clipped_to_the_norm(tmp_path: Path, shards: str) -> None:
    run = make(tmp_path, shards)
    run.accumulate_gradients()
    weights = list(run.model.parameters())
    before = torch.cat([p.grad.flatten().clone() for p in weights if p.grad is not None]).double()
    norm = gradient_norm(weights)
    clip_gradients(weights, 0.05, norm)
    after = torch.cat([p.grad.flatten() for p in weights if p.grad is not None]).double()
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-6) and norm > 0.05
    torch.testing.assert_close(after, before * (0.05 / norm), rtol=1e-4, atol=1e-12)
    assert math.isclose(float(after.norm()), 0.05, rel_tol=1e-4)
