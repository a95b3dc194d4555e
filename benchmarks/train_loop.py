"""Compares `llama-fast train` with its bare step, litgpt's pretraining and transformers' Trainer.

    python -m benchmarks.train_loop [--quick] [--out DIR]        (`make bench-train`)

All train the 58 M model of the CPU benchmark on sequences of 512 tokens. Each side is a complete
training loop in its own process; the loops run alternately, one step each. They are in
`train_sides`.
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

from llama_fast import __version__ as llama_fast_version
from llama_fast import info
from llama_fast._format import times
from llama_fast._write import write_whole
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
OF_BARE, FASTER, MEMORY = 0.95, 1.3, 0.70  # the goals
# Settings of glibc that keep freed memory; `llama-fast train` sets them (train/allocator.py).
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}
WARM = 2  # warm-up steps, the first of which compiles


@dataclass
class Loop:
    """Measurements of one training loop.

    Attributes:
        side: name of the loop.
        samples_ms: durations of steps in milliseconds, each from one step to the next.
        losses: losses of all steps, including the warm-up.
        peak: peak resident memory in bytes while steps were timed.
        libraries: resident memory in bytes before the model: Python, torch, other imports.
    """

    side: str
    samples_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0
    libraries: int = 0

    @property
    def median_ms(self) -> float:
        """Median of the samples, in milliseconds."""
        return statistics.median(self.samples_ms)

    @property
    def extra(self) -> int:
        """Peak memory in bytes of weights, gradients, moments, activations and the loop."""
        return self.peak - self.libraries


def prepare(folder: Path, case: Case, steps: int) -> None:
    """Write the initial weights of all loops, and data for an epoch of `steps` steps."""
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
    """Measure the loops, which run alternately.

    Args:
        folder: the folder given to :func:`prepare`.
        case: sizes of the model and of a batch.
        precision: see :class:`Task`.
        sides: names of the loops.
        rounds: number of timed steps of each.
        threads: number of torch's threads.

    Raises:
        RuntimeError: a loop failed; the message names it.
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
            children.append(Child("train_sides", asdict(task) | {"side": loop.side}, environment))
            for _ in range(WARM):
                loop.losses.append(ask(index, {"step": 1})["loss"])
            if not ask(index, {"memory": "reset"})["reset"]:
                raise RuntimeError(
                    "/proc/self/clear_refs cannot be written, so memory cannot be measured"
                )
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
    """Measure, print and write.

    Returns:
        0, even if a goal was missed, which the output says.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model: does it run?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", action="append", choices=tuple(SIDES), help="only these")
    parser.add_argument("--precision", action="append", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--huge-pages", choices=("on", "off"), default="off", help=f"on every side ({HUGE_PAGES})"
    )
    parser.add_argument(
        "--kept-memory", action="store_true", help=f"on every side ({', '.join(KEPT)})"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for JSON and markdown")
    arguments = parser.parse_args(argv)
    os.environ[HUGE_PAGES] = str(int(arguments.huge_pages == "on"))
    os.environ.update(KEPT if arguments.kept_memory else {})
    case = cases("cpu", ["llama_training"], "float32", quick=arguments.quick)[0]
    sides = [side for side in SIDES if arguments.side is None or side in arguments.side]
    results: dict[str, list[Loop]] = {}
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), case, arguments.rounds + WARM)
        for precision in arguments.precision or ("float32", "bfloat16"):
            results[precision] = measure(
                Path(name), case, precision, sides, arguments.rounds, arguments.threads
            )
            print("\n".join(table({precision: results[precision]}, case)), flush=True)
    lines = goals(results)
    print("\n".join(["", *lines]))
    if arguments.out is not None:
        command = shlex.join(["python", "-m", "benchmarks.train_loop", *argv])
        settings = {"command": command, "rounds": arguments.rounds, "threads": arguments.threads}
        settings |= {"huge_pages": arguments.huge_pages, "seconds": time.perf_counter() - begin}
        suffix = "-kept-memory" if arguments.kept_memory else ""
        path = arguments.out / f"train-{machine_slug('cpu')}{suffix}.json"
        write(path, settings, case, results)
        print(f"{path} and .md")
    return 0


def by_name(loops: list[Loop]) -> dict[str, Loop]:
    """The loops by name."""
    return {loop.side: loop for loop in loops}


def table(results: dict[str, list[Loop]], case: Case) -> list[str]:
    """A markdown table with a row per loop."""
    tokens = case.sizes["B"] * case.sizes["S"]
    lines = [
        "| precision | loop | step | tokens/s | llama_fast's speed / its speed | memory | "
        "without imports | llama_fast's share: total, without imports | "
        "relative difference of losses |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for precision, loops in results.items():
        ours = by_name(loops).get(OURS)
        for loop in loops:
            faster = share = "–"
            if ours is not None and loop is not ours:
                faster = times(loop.median_ms / ours.median_ms)
                share = f"{ours.peak / loop.peak:.0%}, {ours.extra / loop.extra:.0%}"
            apart = "–" if ours is None else f"{difference(ours, loop):.0e}"
            lines.append(
                f"| {precision} | {loop.side} | {loop.median_ms / 1e3:.2f} s | "
                f"{tokens / loop.median_ms * 1e3:,.0f} | {faster} | {loop.peak / 1e9:.2f} GB | "
                f"{loop.extra / 1e9:.2f} GB | {share} | {apart} |"
            )
    return lines


def difference(a: Loop, b: Loop) -> float:
    """The largest relative difference between the losses of two loops in a step."""
    return max(abs(x / y - 1) for x, y in zip(a.losses, b.losses, strict=True))


def goals(results: dict[str, list[Loop]]) -> list[str]:
    """Lines that compare the measurements with the goals."""
    lines = []
    for precision, loops in results.items():
        sides = by_name(loops)
        if OURS not in sides:
            continue
        ours = sides.pop(OURS)
        if (bare := sides.pop(BARE, None)) is not None:
            share = bare.median_ms / ours.median_ms
            lines.append(
                f"{precision}: the loop reaches {share:.1%} of its bare step's tokens/s "
                f"(target: {OF_BARE:.0%}){_mark(share >= OF_BARE)}"
            )
        for side in sides.values():
            faster, share = side.median_ms / ours.median_ms, ours.extra / side.extra
            lines.append(
                f"{precision}: {times(faster)} the tokens/s of {side.side} (target: {FASTER}×)"
                f"{_mark(faster >= FASTER)}, {share:.0%} of its memory (target: {MEMORY:.0%})"
                f"{_mark(share <= MEMORY)}"
            )
    return lines


def _mark(reached: bool) -> str:
    return "" if reached else " (missed)"


def write(path: Path, settings: dict[str, Any], case: Case, results: dict[str, list[Loop]]) -> None:
    """Write all samples as JSON, and a summary as markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = info.collect()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    versions |= {"litgpt": LITGPT.name.partition("-")[2], "llama_fast": llama_fast_version}
    whole = {
        "settings": settings,
        "machine": machine,
        "versions": versions,
        "case": case.name,
        "loops": {
            precision: [
                asdict(loop) | {"median_ms": loop.median_ms, "extra": loop.extra} for loop in loops
            ]
            for precision, loops in results.items()
        },
    }
    write_whole(path, json.dumps(whole, indent=1) + "\n")
    cpu = machine["cpu"]
    text = [
        "# Comparison of training loops",
        "",
        f"{cpu['model']}, {cpu['instruction_set']}, {settings['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". Medians of {settings['rounds']} rounds; the loops run alternately, each in its own "
        f"process. `{settings['command']}`",
        "",
        *table(results, case),
        "",
        *(f"- {line}" for line in goals(results)),
        "",
        EXPLAINED,
    ]
    write_whole(path.with_suffix(".md"), "\n".join(text))


EXPLAINED = """\
A step includes data loading, forward, backward, clipping, AdamW and logging. All loops begin
with the same weights and use the same batches of 4 sequences of 512 random tokens, the same
learning rate and the same clipping, so their losses have to agree.

- **llama_fast**: `llama-fast train`, which packs sequences from shards and writes metrics.csv,
  TensorBoard events and a line of output at each step.
- **bare step**: `model.loss`, backward, fused AdamW, on batches in memory, without clipping.
- **litgpt**: its `pretrain.setup`, which compiles the model with torch.compile, computes the
  cross-entropy in chunks of 128 tokens, and logs each step to TensorBoard. On a CPU it uses the
  unfused AdamW.
- **transformers**: `Trainer` with `LlamaForCausalLM`, `sdpa` and its fused AdamW; it logs each
  step to TensorBoard.

In float32 runs, everything is in float32. In bfloat16 runs, every loop uses mixed precision:
float32 weights, gradients and moments, and matrix products in bfloat16 by `torch.autocast`
(`precision: bfloat16` here, `bf16-mixed` in litgpt, `bf16=True` in transformers).

By default each loop allocates memory as its program does: `llama-fast train` keeps the memory
that a step frees for the next step. With `--kept-memory`, all loops do. A process that returns
memory to the system causes page faults when it allocates again.

Memory is the peak resident memory while steps were timed. "Without imports" is this memory
minus that of Python, torch and the other imports before the model is created; the target for
memory refers to it.
"""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
