"""One side of the fine-tuning comparison, in a process of its own.

``python -m llama_fast.demo.finetune_side '<settings as JSON>'`` trains the model on one backend
and prints one JSON object a line: {"ready": ...} once the model and data are loaded, {"step": ...}
after each step, and {"done": ...} at the end. A process of its own makes the peak memory honest,
and gives each side a fresh allocator.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

import llama_fast
from llama_fast._memory import peak_rss, reset_peak_rss, rss
from llama_fast.data.benchmark_tables import boolq_passages
from llama_fast.demo.answer import load_both

__all__ = ["Settings", "batches", "main", "train"]


@dataclass(frozen=True)
class Settings:
    """What one side trains.

    Attributes:
        model: path of the checkpoint.
        data: folder of the benchmark data.
        backend: name for :func:`llama_fast.use_backend`; "auto" is our kernels.
        steps, batch, length: optimizer steps, sequences a step, tokens a sequence.
        learning_rate: AdamW's, after a linear warm-up over a tenth of the steps.
        dtype: precision of weights and activations.
        seed: of the draw of passages.
        threads: for torch and for our kernels.
    """

    model: str
    data: str
    backend: str
    steps: int
    batch: int
    length: int
    learning_rate: float
    dtype: str
    seed: int
    threads: int


def batches(
    passages: list[str], encode: Callable[[str], list[int]], settings: Settings, end: list[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (tokens, targets), both (batch, length): shuffled passages + ``end``, cut to size."""
    generator = torch.Generator().manual_seed(settings.seed)
    need = settings.batch * settings.length
    stream: list[int] = []
    while True:
        for row in torch.randperm(len(passages), generator=generator).tolist():
            stream += encode(passages[row]) + end
            while len(stream) > need:
                cut = torch.tensor(stream[: need + 1])
                stream = stream[need:]
                shape = (settings.batch, settings.length)
                yield cut[:-1].view(shape), cut[1:].view(shape)


def train(settings: Settings, say: Callable[[dict], None]) -> None:
    """Trains as ``settings`` say; ``say`` gets the records described at the top of this file."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model, tokenizer = load_both(Path(settings.model), getattr(torch, settings.dtype))
    model.train()
    passages = boolq_passages(Path(settings.data))
    end = tokenizer.encode("\n\n")
    unseen = passages[-len(passages) // 10 :]
    feed = batches(passages[: -len(unseen)], tokenizer.encode, settings, end)
    held_out = next(batches(unseen, tokenizer.encode, settings, end))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, fused=True)
    warm_up = max(1, settings.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / warm_up))
    data = [next(feed) for _ in range(settings.steps)]
    # "auto" leaves the choice to the environment (LLAMA_FAST_BACKEND), as everywhere else.
    ours = settings.backend == "auto"
    with nullcontext() if ours else llama_fast.use_backend(settings.backend):
        with torch.inference_mode():
            before = model.loss(*held_out).item()
        reset_peak_rss()
        say({"ready": True, "held_out": before, "resident": rss()})
        for step, (tokens, targets) in enumerate(data):
            started = time.perf_counter()
            loss = model.loss(tokens, targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            say({"step": step, "loss": value, "seconds": time.perf_counter() - started})
        peak = peak_rss()
        with torch.inference_mode():
            after = model.loss(*held_out).item()
    say({"done": True, "held_out": after, "peak": peak})


def main(argument: str) -> None:
    """Entry point of the process: settings in, records out."""
    train(Settings(**json.loads(argument)), lambda record: print(json.dumps(record), flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
