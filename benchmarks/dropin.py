"""Speed and memory of transformers' SmolLM2-135M with `llama_fast.patch`.

    python -m benchmarks.dropin [--quick]        (`make bench-dropin`)

Three copies of a model alternate in one process: stock (eager), stock with `torch.compile`, and
patched; results are medians of the rounds. The memory of each side is measured in a separate
process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import llama_fast
from llama_fast._memory import peak_rss, reset_peak_rss, rss
from llama_fast.data.fetch import smollm2_path

SIDES = ("stock", "compiled", "patched")
BATCH, LENGTH = 2, 512
PROMPT = (
    "The history of the steam engine begins long before the railways. In the first century, Hero "
    "of Alexandria described a sphere that turned when the water in it boiled."
)
NEW_TOKENS = 128


def write_checkpoint(folder: Path) -> list[int]:
    """Write SmolLM2-135M as a folder that transformers loads; return the prompt's tokens."""
    model, tokenizer = llama_fast.models.load(smollm2_path(), dtype=torch.float32)
    llama_fast.models.save(model, folder)
    assert tokenizer is not None
    return tokenizer.encode(PROMPT)


def prepared(side: str, folder: Path, dtype: torch.dtype) -> tuple[Any, Callable[..., Any]]:
    """The model of one side, and the function to call."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if side == "patched":
        llama_fast.patch(model)
    return model, torch.compile(model) if side == "compiled" else model


class Training:
    """Training steps of one side: forward, backward, AdamW."""

    def __init__(self, side: str, folder: Path, dtype: torch.dtype) -> None:
        self.model, self.call = prepared(side, folder, dtype)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-5, fused=True)
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> float:
        """Run a step on random tokens; return its loss."""
        vocabulary = self.model.config.vocab_size
        tokens = torch.randint(vocabulary, (BATCH, LENGTH), generator=self.generator)
        loss = self.call(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def in_turns(
    runs: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Run all sides alternately; return seconds (without the first round) and results."""
    seconds: dict[str, list[float]] = {side: [] for side in runs}
    results: dict[str, list[Any]] = {side: [] for side in runs}
    for turn in range(rounds + 1):
        order = list(runs) if turn % 2 else list(reversed(runs))
        for side in order:
            begin = time.perf_counter()
            results[side].append(runs[side]())
            if turn:
                seconds[side].append(time.perf_counter() - begin)
    return seconds, results


def training(
    folder: Path, dtype: torch.dtype, rounds: int, which: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Tokens per second of each side, and the largest difference between their losses."""
    sides = {side: Training(side, folder, dtype) for side in which}
    seconds, losses = in_turns({side: s.step for side, s in sides.items()}, rounds)
    return {
        side: {
            "tokens_per_second": BATCH * LENGTH / statistics.median(seconds[side]),
            "loss_difference": max(
                abs(a - b) / b for a, b in zip(losses[side], losses["stock"], strict=True)
            ),
        }
        for side in which
    }


def peak(side: str, folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Memory of this process in bytes: the "peak" of two training steps, and that "before" them."""
    run = Training(side, folder, dtype)
    if side == "compiled":
        run.step()  # warm-up: the memory of compilation does not count
    before = rss()
    reset_peak_rss()
    for _ in range(2):
        run.step()
    return {"peak": peak_rss(), "before": before}


def peak_apart(side: str, folder: Path, dtype: str) -> dict[str, int]:
    """:func:`peak`, measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.dropin", "--peak", side, dtype, str(folder)]
    got = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(got.stdout.splitlines()[-1])
    return found


def generation(folder: Path, prompt: list[int], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Tokens per second of greedy generation, stock and patched, and where the texts differ."""
    tokens = torch.tensor([prompt])
    runs: dict[str, Callable[[], list[int]]] = {}
    for side in ("stock", "patched"):
        model = prepared(side, folder, dtype)[0].eval()

        def run(model: Any = model) -> list[int]:
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=0,
            )
            found: list[int] = out[0].tolist()
            return found

        runs[side] = run
    seconds, texts = in_turns(runs, rounds)
    stock, patched = texts["stock"][0][len(prompt) :], texts["patched"][0][len(prompt) :]
    speeds = {side: NEW_TOKENS / statistics.median(seconds[side]) for side in runs}
    return {"tokens_per_second": speeds, **compared(folder, prompt, stock, patched)}


def compared(
    folder: Path, prompt: list[int], stock: list[int], patched: list[int]
) -> dict[str, Any]:
    """Where two texts first differ, and the gap between the two tokens' logits in float64.

    `gap` is the logit of stock's token minus that of the patched model's token, after the common
    text. If it is about as small as the rounding error of the logits, either token is correct.
    """
    alike = next(
        (i for i, (a, b) in enumerate(zip(stock, patched, strict=True)) if a != b), len(stock)
    )
    if alike == len(stock):
        return {"alike": alike, "gap": 0.0}
    model = prepared("stock", folder, torch.float64)[0].eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + stock[:alike]])).logits[0, -1]
    return {"alike": alike, "gap": (logits[stock[alike]] - logits[patched[alike]]).item()}


def main(argv: list[str]) -> int:
    """Measure all precisions and print the results."""
    if argv[:1] == ["--peak"]:
        print(json.dumps(peak(argv[1], Path(argv[3]), getattr(torch, argv[2]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, no torch.compile")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rounds = 2 if arguments.quick else arguments.rounds
    sides = ("stock", "patched") if arguments.quick else SIDES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompt = write_checkpoint(folder)
        for dtype in (torch.bfloat16, torch.float32):
            report(folder, prompt, dtype, rounds, sides)
    return 0


def report(
    folder: Path, prompt: list[int], dtype: torch.dtype, rounds: int, sides: Sequence[str]
) -> None:
    """Measure everything in one precision and print the results."""
    name = str(dtype).removeprefix("torch.")
    trained = training(folder, dtype, rounds, sides)
    ours = trained["patched"]["tokens_per_second"]
    for side in sides:
        speed = trained[side]["tokens_per_second"]
        print(f"training, {name}, {side:<8} {speed:7.1f} tokens/s   patched: {ours / speed:.2f}x")
    print(f"  losses at most {trained['patched']['loss_difference']:.1e} from stock's")
    memory = {side: peak_apart(side, folder, name) for side in sides}
    for side in sides:
        most, extra = memory[side]["peak"], memory[side]["peak"] - memory[side]["before"]
        mine = memory["patched"]["peak"]
        print(
            f"memory,   {name}, {side:<8} {most / 1e9:7.2f} GB, {extra / 1e9:.2f} GB of it above "
            f"the loaded model   patched: {mine / most:.0%}"
        )
    generated = generation(folder, prompt, dtype, max(2, rounds // 2))
    ours = generated["tokens_per_second"]["patched"]
    for side, speed in generated["tokens_per_second"].items():
        print(f"generate, {name}, {side:<8} {speed:7.1f} tokens/s   patched: {ours / speed:.2f}x")
    alike, gap = generated["alike"], generated["gap"]
    print(f"  the first {alike} of {NEW_TOKENS} tokens are stock's", end="")
    if alike < NEW_TOKENS:
        print(f"; its next has a logit of {gap:+.3f} beside ours in float64", end="")
    print(flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
