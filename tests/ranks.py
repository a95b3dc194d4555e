"""Tests on several processes, joined by gloo.

`FORKED` processes are forks of one that has imported torch and the package, and has no threads: new
ones spend four seconds each on the imports. What starts workers of its own is to run in new ones.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOAD = ["pytest", "torch.distributed.fsdp", "torch.distributed.tensor", "llama_fast.train.run"]


NEW, FORKED = "spawn", "forkserver"


def on_ranks(world: int, function: Callable[..., Any], *args: Any, method: str = NEW) -> None:
    """Call `function(rank, *args)` on each of `world` processes; what fails there fails here.

    Its first argument after the rank has to be a new folder, where the processes find each other.
    """
    start(world, _rank, world, function, *args, method=method)


def start(world: int, function: Callable[..., Any], *args: Any, method: str = NEW) -> None:
    """Call `function(rank, *args)` on each of `world` processes, which do not know each other."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    arguments = (dict(os.environ), function, *args)
    mp.start_processes(_with_environment, arguments, nprocs=world, start_method=method)


def _with_environment(
    rank: int, environment: dict[str, str], function: Callable[..., Any], *args: Any
) -> None:
    """The process of which this is a fork has the environment that the tests began with."""
    os.environ.clear()
    os.environ.update(environment)
    function(rank, *args)


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
