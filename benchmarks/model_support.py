"""Writes docs/model-support.md: what `llama_fast.patch` replaces per architecture, and the gain.

    python -m benchmarks.model_support [--only NAMES] [--no-speed]      (`make model-support`)

The architectures are those of the tests (tests/integrations/zoo.py). Errors are measured on tiny
models, the speed of a training step on larger ones: patched and stock model alternate in one
process, and results are medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import llama_fast
from llama_fast._format import times
from tests.integrations import parity, zoo

PAGE = Path(__file__).parent.parent / "docs" / "model-support.md"
PARTS = ("attention", "rms_norm", "rope", "mlp", "loss")
LARGER = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "vocab_size": 8192,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "sliding_window": 128,
}
BATCH, LENGTH = 2, 256


def replaced(name: str) -> tuple[list[str], list[str]]:
    """For each part, "replaced/found" ("" if the model has no such part); and reasons."""
    report = llama_fast.patch(zoo.build(name))
    cells, reasons = [], []
    for part in PARTS:
        entries = [e for e in report.entries if e.part == part]
        cells.append(f"{sum(e.replaced for e in entries)}/{len(entries)}" if entries else "")
        reasons += [f"{part}: {e.reason}" for e in entries if not e.replaced]
    return cells, list(dict.fromkeys(reasons))


def worst(name: str, dtype: torch.dtype) -> str:
    """Largest errors of the stock and of the patched model over all batches and results."""
    errors: list[tuple[float, float]] = []
    for what in zoo.batches(name, zoo.build(name)):
        try:
            stock, ours = parity.measured(name, what, dtype)
        except parity.NoTruth as reason:
            return str(reason)
        errors.append((parity.overall(stock), parity.overall(ours)))
    return " / ".join(f"{max(side):.1e}" for side in zip(*errors, strict=True))


def speed(name: str, rounds: int) -> str:
    """Speedup of a training step in float32: stock time divided by patched time."""
    default = transformers.AutoConfig.for_model(name)
    larger = {key: value for key, value in LARGER.items() if hasattr(default, key)}
    given = zoo.ZOO[name].config
    larger = {key: value for key, value in larger.items() if key not in given}
    if {"layer_types", "no_rope_layers", "num_layers"} & set(given):  # given for each layer
        larger.pop("num_hidden_layers", None)
    if zoo.ZOO[name].kind not in ("causal", "masked", "seq2seq"):
        return ""
    sides: dict[str, Any] = {side: zoo.build(name, **larger) for side in ("stock", "patched")}
    llama_fast.patch(sides["patched"])
    tokens = torch.randint(3, 8000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides if turn % 2 else reversed(sides):
            begin = time.perf_counter()
            sides[side](input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            if turn:
                seconds[side].append(time.perf_counter() - begin)
            sides[side].zero_grad()
    ratio = statistics.median(seconds["stock"]) / statistics.median(seconds["patched"])
    return times(ratio)


def row(name: str, rounds: int) -> list[str]:
    """The table cells of one architecture."""
    cells, reasons = replaced(name)
    errors = [worst(name, dtype) for dtype in (torch.float32, torch.bfloat16)]
    fast = ""
    if rounds:
        try:
            fast = speed(name, rounds)
        except Exception as error:
            fast = f"stock or patched fails at this size: {type(error).__name__}"
    return [f"`{name}`", *cells, *errors, fast, "; ".join(reasons)]


def page(rows: Sequence[Sequence[str]], rounds: int) -> str:
    """The content of the file."""
    errors = ("error, float32", "error, bfloat16")
    head = ["architecture", *PARTS, *errors, "step", "not replaced, and why"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    speeds = (
        f"*step*: the speedup of a training step (forward and backward, float32, {BATCH}×{LENGTH} "
        f"tokens, width {LARGER['hidden_size']}, {LARGER['num_hidden_layers']} or 2 layers, "
        f"{LARGER['vocab_size']} classes) relative to stock, on {torch.get_num_threads()} threads; "
        f"medians of {rounds} alternating rounds."
        if rounds
        else "*step*: not measured in this run."
    )
    return f"""# Model support

This page is written by `make model-support` (transformers {transformers.__version__}, torch
{torch.__version__}, {platform.machine()}). Modules are recognised by what they compute, in
evaluation and in training mode, so other architectures work, too; `print(llama_fast.patch(model))`
lists every module. Linear maps are replaced in all architectures below. Dropout in an MLP is kept,
and a module that computes something different in training mode (noise, stopped gradients) is not
replaced.

The columns from attention to loss give the number of replaced modules and of examined modules, in
tiny models of two layers; an empty cell means that the architecture has no such part. *error*:
stock / patched, the root-mean-square error over loss, logits and the gradients of all parameters,
each relative to its size, compared with the same model in float64; the largest value of the plain,
left-padded, right-padded and packed batches. {speeds}

Every row is also tested (`tests/integrations/test_model_zoo.py`): these errors, identical tokens in
greedy generation with dynamic and static caches, gradient checkpointing, and complete unpatching.

{chr(10).join(lines)}
"""


def main(argv: list[str]) -> int:
    """Measure all architectures and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="print these rows, write nothing")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    rounds = 0 if arguments.no_speed else arguments.rounds
    rows = []
    for name in arguments.only or zoo.ZOO:
        rows.append(row(name, rounds))
        print(" ".join(rows[-1]), flush=True)
    if not arguments.only:
        PAGE.write_text(page(rows, rounds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
