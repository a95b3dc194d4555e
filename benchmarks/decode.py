"""Decoding of one text: `llama_fast.generation.Engine` compared with transformers' `generate`.

    python -m benchmarks.decode [--quick]        (part of `make bench-eval`)

SmolLM2-135M decodes greedily with the same weights and prompt on both sides, which alternate in one
process; results are medians of the rounds. The bound is the time to read the weights that a token
needs. Of an embedding a token reads one row only, but SmolLM2's is also its head and read as a
whole.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import llama_fast
from llama_fast.data.fetch import smollm2_path
from llama_fast.generation import Engine, GenerationRequest
from llama_fast.models import LLaMA
from llama_fast.tokenizers import Tokenizer

from .dropin import in_turns, prepared, write_checkpoint

NEW_TOKENS = 128
DTYPES = (torch.bfloat16, torch.float32)
BUFFER = 512 << 20  # bytes


def read_bandwidth(rounds: int = 7) -> float:
    """Read bandwidth in bytes/s: the best of a sum, a maximum and a matrix-vector product."""
    numbers, ones = torch.ones(BUFFER // 4), torch.ones(4096)
    matrix = numbers.view(-1, len(ones))
    best = 0.0
    reads: tuple[Callable[[], object], ...] = (
        numbers.sum,
        numbers.amax,
        lambda: torch.mv(matrix, ones),
    )
    for read in reads:
        for _ in range(rounds):
            begin = time.perf_counter()
            read()
            best = max(best, BUFFER / (time.perf_counter() - begin))
    return best


def bytes_per_token(model: LLaMA) -> int:
    """Bytes of the weights that are read for each token."""
    numbers = sum(w.numel() for w in model.parameters())
    if model.head is not None:
        numbers -= model.embedding.weight.numel()
    return numbers * model.head_weight.element_size()


def sides(
    folder: Path, tokenizer: Tokenizer, prompt: list[int], dtype: torch.dtype
) -> tuple[dict[str, Callable[[], list[int]]], LLaMA]:
    """The generating function of each side, and our model."""
    theirs = prepared("stock", folder, dtype)[0].eval()
    tokens = torch.tensor([prompt])
    model, _ = llama_fast.models.load(folder, dtype)
    engine = Engine(model, tokenizer, max_batch=1)

    def stock() -> list[int]:
        out = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )
        found: list[int] = out[0, len(prompt) :].tolist()
        return found

    def ours() -> list[int]:
        return engine.generate([GenerationRequest(prompt, NEW_TOKENS)])[0].tokens

    return {"transformers": stock, "llama_fast": ours}, model


def main(argv: list[str]) -> int:
    """Measure both precisions and print the results."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompt = write_checkpoint(folder)
        tokenizer = llama_fast.models.load(smollm2_path())[1]
        assert tokenizer is not None
        for dtype in DTYPES:
            report(folder, tokenizer, prompt, dtype, 2 if arguments.quick else arguments.rounds)
    return 0


def report(
    folder: Path, tokenizer: Tokenizer, prompt: list[int], dtype: torch.dtype, rounds: int
) -> None:
    """Measure one precision and print the result."""
    runs, model = sides(folder, tokenizer, prompt, dtype)
    bandwidth = read_bandwidth()
    seconds, texts = in_turns(runs, rounds)
    bandwidth = max(bandwidth, read_bandwidth())
    speeds = {side: NEW_TOKENS / statistics.median(seconds[side]) for side in runs}
    bound = bandwidth / bytes_per_token(model)
    name = str(dtype).removeprefix("torch.")
    for side, speed in speeds.items():
        print(f"decode, {name}, B=1, {side:<12} {speed:6.1f} tokens/s")
    ours = speeds["llama_fast"]
    alike = next(
        (i for i, pair in enumerate(zip(*(t[0] for t in texts.values()), strict=True))
         if pair[0] != pair[1]),
        NEW_TOKENS,
    )  # fmt: skip
    print(
        f"  {ours / speeds['transformers']:.2f}x; {ours / bound:.0%} of the bound of {bound:.1f} "
        f"tokens/s ({bytes_per_token(model) / 1e6:.0f} MB per token, {bandwidth / 1e9:.1f} GB/s); "
        f"the first {alike} of {NEW_TOKENS} tokens are the same",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
