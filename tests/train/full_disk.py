"""Runs on a disk of 3 MB: `python -m tests.train.full_disk DISK SHARDS` (of test_run.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llama_fast.cli.main import main as cli


def main(disk: Path, shards: str) -> None:
    def train(name: str) -> None:
        options = {"data.train": shards, "data.seq_len": 32, "data.micro_batch_size": 1,
                   "steps": 10, "checkpoint_every": 2, "keep_last": 0, "log_every": 10}  # fmt: skip
        given = [f"--{key}={value}" for key, value in options.items()]
        code = cli(["train", "--out", str(disk / name), *given])
        steps = sorted(path.name for path in (disk / name / "checkpoints").glob("*"))
        print(f"{name}: code {code}, {' '.join(steps)}", flush=True)

    train("first")
    subprocess.run(["mount", "-o", "remount,size=30m", disk], check=True)
    train("first")
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "other data").write_bytes(bytes(free - 8192))
    train("second")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
