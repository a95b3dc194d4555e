"""`llama-fast train` beside its own bare step, litgpt's pretraining and transformers' Trainer.

    python -m benchmarks.train_loop [--quick] [--out DIR]        (`make bench-train`)

The 58 M model of the CPU benchmark on rows of 512 tokens. Each side is a whole training loop in a
process of its own; the loops take turns, a step each. See `train_sides` for what each one does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama_fast import info
from llama_fast.cli.bench import COMPILE_THREADS, HUGE_PAGES
from llama_fast.data import ShardWriter
from llama_fast.models import LLaMA, LlamaConfig, save

from .cases import Case, cases
from .child import Child
from .report import machine_slug
from .train_sides import SIDES, Task

REPOSITORY = Path(__file__).resolve().parents[1]
LITGPT = REPOSITORY / "build" / "litgpt-0.5.13"  # put there by `make bench-train`
OURS, BARE = "llama_fast", "bare step"
OF_BARE, FASTER, MEMORY = 0.95, 1.3, 0.70  # what is asked for
WARM = 2  # steps before the first that counts; the first of them compiles


@dataclass
class Loop:
    """What one side did.

    Attributes:
        side: its name.
        samples_ms: of a step, all between it and the next included.
        losses: of all steps, the warm-up's too.
        peak: most bytes resident while steps were timed.
        libraries: bytes of it that were there before the model: Python, torch, other imports.
    """

    side: str
    samples_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0
    libraries: int = 0

    @property
    def median_ms(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples_ms)

    @property
    def extra(self) -> int:
        """Bytes of weights, gradients, moments, activations and the loop."""
        return self.peak - self.libraries


def prepare(folder: Path, case: Case, steps: int) -> None:
    """Write the weights that all sides begin with, and data for `steps` steps an epoch."""
    sizes = case.sizes
    config = LlamaConfig(
        vocab_size=sizes["V"],
        embed_dim=sizes["E"],
        num_heads=sizes["H"],
        num_layers=sizes["L"],
        num_kv_heads=sizes["K"],
        ffn_dim=sizes["F"],
        max_seq_len=sizes["S"],
    )
    torch.manual_seed(0)
    save(LLaMA(config), folder / "weights")
    random = np.random.default_rng(0)
    with ShardWriter(folder / "shards", vocab_size=sizes["V"], tokenizer={}) as writer:
        for _ in range(steps * sizes["B"]):
            writer.add(random.integers(sizes["V"], size=sizes["S"] + 1).tolist())


def measure(
    folder: Path, case: Case, precision: str, sides: list[str], rounds: int, threads: int
) -> list[Loop]:
    """Let the sides take turns; `folder` is that of :func:`prepare`.

    Raises:
        RuntimeError: a side failed; names it.
    """
    task = Task(str(folder), case.sizes["B"], case.sizes["S"], precision, threads)
    loops = [Loop(side) for side in sides]
    children: list[Child] = []

    def ask(index: int, question: dict[str, Any]) -> dict[str, Any]:
        try:
            return children[index].ask(question)
        except RuntimeError as error:
            raise RuntimeError(f"{sides[index]}: {error}") from error

    try:
        for index, loop in enumerate(loops):
            path = os.pathsep.join(filter(None, [str(LITGPT), os.environ.get("PYTHONPATH")]))
            environment = {COMPILE_THREADS: str(threads)}
            if loop.side == "litgpt":
                environment["PYTHONPATH"] = path
            children.append(
                Child("train_sides", asdict(task) | {"side": loop.side}, environment)
            )
            for _ in range(WARM):
                loop.losses.append(ask(index, {"step": 1})["loss"])
            if not ask(index, {"memory": "reset"})["reset"]:
                raise RuntimeError("/proc/self/clear_refs cannot be written: memory is not known")
        for turn in range(rounds):
            for at in range(len(loops)):
                index = (at + turn) % len(loops)
                said = ask(index, {"step": 1})
                loops[index].samples_ms.append(said["ms"])
                loops[index].losses.append(said["loss"])
        for index, loop in enumerate(loops):
            said = ask(index, {"memory": "read"})
            loop.peak, loop.libraries = said["peak"], said["libraries"]
    finally:
        for child in children:
            child.close()
    return loops


def main(argv: list[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model: does it run?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", action="append", choices=tuple(SIDES), help="only these")
    parser.add_argument("--precision", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--huge-pages", choices=("on", "off"), default="on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for JSON and markdown")
    arguments = parser.parse_args(argv)
    os.environ[HUGE_PAGES] = str(int(arguments.huge_pages == "on"))
    case = cases("cpu", ["llama_training"], "float32", quick=arguments.quick)[0]
    found: dict[str, list[Loop]] = {}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), case, arguments.rounds + WARM)
        for precision in arguments.precision or ("float32", "bfloat16"):
            sides = list(SIDES) if arguments.side is None else arguments.side
            loops = measure(
                Path(name), case, precision, sides, arguments.rounds, arguments.threads
            )
            found[precision] = loops
            for loop in loops:
                print(precision, loop.side, loop.median_ms, loop.peak/1e6, loop.libraries/1e6, loop.losses)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
