"""Peak memory of saves, measured: `python -m tests.train.checkpoint_memory FOLDER` prints it.

In a process of its own: what other tests have freed would otherwise be counted as free here.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from llama_fast._memory import peak_rss, reset_peak_rss, rss
from llama_fast.models import LLaMA, LlamaConfig, save
from llama_fast.train.checkpoints import CheckpointManager

# glibc gives blocks of this size and more back when they are freed; below, they may stay.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"}
SHAPE = LlamaConfig(vocab_size=8192, embed_dim=1024, num_heads=16, num_layers=6, ffn_dim=2816)


def main() -> None:
    """Bytes of the weights, and by how many each way of saving raised the peak, as JSON."""
    folder = Path(sys.argv[1])
    manager = CheckpointManager(folder / "checkpoints")
    manager.save(0, {"small": torch.ones(10)}, {})  # what libraries take once is not counted
    model = LLaMA(SHAPE)
    save(LLaMA(LlamaConfig(vocab_size=64, embed_dim=32, num_heads=2, num_layers=1)), folder / "s")

    def checkpoint() -> None:
        manager.save(1, dict(model.named_parameters()), {}, asynchronous=True)
        manager.wait()

    measured = {"weights": sum(w.nbytes for w in model.parameters())}
    for name, work in {
        "checkpoint": checkpoint,
        "export": lambda: save(model, folder / "exported"),
    }.items():
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = rss()
        if not reset_peak_rss():
            raise RuntimeError("/proc/self/clear_refs cannot be written")
        work()
        measured[name] = peak_rss() - before
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
