"""A step reads values from the device once, however many micro-batches it has.

On a GPU each such read makes the host wait for all work that was queued.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llama_fast.models import LLaMA
from llama_fast.train import Trainer
from llama_fast.train.config import DataOptions, OptimizerOptions, TrainConfig
from llama_fast.train.run import TrainingRun

READS = {"item", "tolist", "cpu", "numpy", "nonzero", "__float__", "__int__", "__bool__"}


class ScalarReads(TorchDispatchMode):
    """Counts reads of single values that ATen functions do. Token ids and masks do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if op is torch.ops.aten._local_scalar_dense.default:
            self.count += args[0].is_floating_point()
        return op(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts methods that read floating-point tensors, those called by `ScalarReads` included."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") in READS:
            self.count += args[0].is_floating_point()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_a_step_reads_once(tmp_path: Path, shards: str, micro_batches: int) -> None:
    run = TrainingRun(
        TrainConfig(
            out=str(tmp_path),
            data=DataOptions(train=shards, seq_len=64, micro_batch_size=2),
            optimizer=OptimizerOptions(
                gradient_accumulation_steps=micro_batches, max_grad_norm=0.1, ema_decay=0.9
            ),
        ),
        log=lambda line: None,
    )
    with Reads() as reads, ScalarReads() as scalars:
        run._train_step()
    assert (reads.count, scalars.count) == (1, 0)  # the loss and the norm, as one list


def test_a_validation_reads_once(tmp_path: Path, shards: str) -> None:
    run = TrainingRun(
        TrainConfig(
            out=str(tmp_path),
            valid_batches=3,
            data=DataOptions(train=shards, valid=shards, seq_len=64, micro_batch_size=2),
        ),
        log=lambda line: None,
    )
    with Reads() as reads, ScalarReads() as scalars:
        run.validate()
    assert (reads.count, scalars.count) == (1, 1)


def test_a_step_of_the_trainer_reads_once() -> None:
    model = LLaMA(vocab_size=16, embed_dim=8, num_heads=2, num_layers=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batch = torch.randint(16, (2, 8)), torch.randint(16, (2, 8))
    trainer = Trainer(model, None, optimizer, max_grad_norm=0.1, log=None)
    with Reads() as reads:
        trainer.train([batch] * 3, 1)
    assert reads.count == 3
