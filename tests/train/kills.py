"""Runs that are killed: `python -m tests.train.kills FOLDER SHARDS KILLS` (of test_run.py).

One process imports everything and forks a child for each run, which is killed or left to end.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # the optimizer imports it

from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.run import TrainingRun


def config(out: Path, shards: str) -> TrainConfig:
    """Everything that has a state: dropout, workers, accumulation, a moving average."""
    return TrainConfig(
        out=str(out),
        steps=16,
        checkpoint_every=2,
        keep_last=2,
        model=ModelOptions(overrides={"p_dropout": 0.1}),
        data=DataOptions(train=shards, seq_len=64, micro_batch_size=2, num_workers=1, verify=False),
        optimizer=OptimizerOptions(gradient_accumulation_steps=2, ema_decay=0.9, warmup_steps=3),
    )


def run(folder: Path, shards: str, kill_after: float | None) -> float:
    """One run in a process of its own; how long it took."""
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # its workers are killed with it
        code = 1
        try:
            torch.set_num_threads(1)
            TrainingRun(config(folder, shards), log=lambda line: None).train()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if kill_after is None and status != 0:
        raise SystemExit(f"{folder}: a run that was not killed ended with status {status}")
    return time.perf_counter() - begin


def main(folder: Path, shards: str, kills: int) -> None:
    draw = random.Random(1)
    took = run(folder / "whole", shards, None)
    for number in range(kills):
        out = folder / f"killed{number}"
        run(out, shards, draw.uniform(0.1, took))
        steps = sorted(path.name for path in (out / "checkpoints").glob("*"))
        print(number, *steps, flush=True)
        run(out, shards, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
