"""Peak memory of a training step, measured: `python -m tests.train.step_memory FOLDER` prints it.

Each case runs in a child forked from a process that has imported everything and run nothing. The
child trains a tiny model first, so that what libraries take once is not counted, then notes its
resident memory, makes the model and its optimizer, and runs a step.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from llama_fast._memory import peak_rss, reset_peak_rss, rss
from llama_fast.data import ShardWriter
from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.run import TrainingRun

VOCAB_SIZE = 4096
# glibc gives blocks of this size and more back when they are freed; below, they may stay.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"}
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, full, average": {
        "activation_checkpointing": "full",
        "optimizer": OptimizerOptions(ema_decay=0.9),
    },
    "bfloat16, selective": {"precision": "bfloat16", "activation_checkpointing": "selective"},
    "bfloat16, full": {"precision": "bfloat16", "activation_checkpointing": "full"},
}


def config(folder: Path, **changes: Any) -> TrainConfig:
    """16 M weights, 2048 tokens: large beside what the allocator and the kernels keep (20 MB)."""
    shape: dict[str, int | float | bool] = {
        "embed_dim": 512, "num_layers": 4, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64,
        "ffn_dim": 1408,
    }  # fmt: skip
    return TrainConfig(
        out=str(folder / "run"), steps=1, device="cpu",
        model=ModelOptions(preset="debug", overrides=shape),
        data=DataOptions(train=str(folder / "shards"), seq_len=512, micro_batch_size=4),
        **changes,
    )  # fmt: skip


def write_shards(folder: Path) -> None:
    """Documents that fill a row each."""
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(folder / "shards", vocab_size=VOCAB_SIZE, tokenizer={}) as writer:
        for _ in range(32):
            writer.add(torch.randint(VOCAB_SIZE, (513,), generator=generator).tolist())


def _measure(settings: TrainConfig) -> int:
    tiny = ModelOptions(preset="debug", overrides={"num_layers": 1})
    rehearsal = TrainingRun(dataclasses.replace(settings, model=tiny), log=lambda line: None)
    rehearsal._train_step()
    del rehearsal
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = rss()
    if not reset_peak_rss():
        raise RuntimeError("/proc/self/clear_refs cannot be written")
    run = TrainingRun(settings, log=lambda line: None)
    dict(run._tensors())  # makes the moments, as if a step had been before
    run._train_step()
    return peak_rss() - before


def main() -> None:
    """Bytes of each case as JSON."""
    torch.set_num_threads(1)
    folder, measured = Path(sys.argv[1]), {}
    write_shards(folder)
    for name, changes in CASES.items():
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(write, str(_measure(config(folder, **changes))).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            measured[name] = int(pipe.read())
        os.waitpid(pid, 0)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
