"""Tests on several processes, joined by gloo."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(world: int, function: Callable[..., Any], *args: Any) -> None:
    """Call `function(rank, *args)` on each of `world` processes; what fails there fails here.

    Its first argument after the rank has to be a new folder, where the processes find each other.
    """
    mp.spawn(_rank, args=(world, function, *args), nprocs=world)


def _rank(rank: int, world: int, function: Callable[..., Any], folder: Path, *args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world)
    )
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        function(rank, folder, *args)
    finally:
        dist.destroy_process_group()
