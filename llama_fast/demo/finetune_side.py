"""One side of the fine-tuning comparison, in a process of its own.

``python -m llama_fast.demo.finetune_side '<settings as JSON>'`` trains the model on one backend
and prints one JSON object per line: {"ready": ...} once model and data are loaded, {"step": ...}
after each step, and {"done": ...} at the end. In a process of its own, each side has a fresh
allocator and a peak memory that the other side does not affect.
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
from llama_fast.models.loading import load_model

__all__ = ["FinetuneSettings", "batches", "main", "train"]


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of one side's training.

    Attributes:
        model: path of the checkpoint.
        data: folder of the benchmark data.
        backend: name for :func:`llama_fast.use_backend`; "auto" stands for our kernels.
        steps, batch, length: optimizer steps, sequences per step, tokens per sequence.
        learning_rate: peak learning rate of AdamW, after a linear warm-up over a tenth of the
            steps.
        dtype: precision of weights and activations.
        seed: seed for the order of passages.
        threads: number of threads of torch and of our kernels.
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
    passages: list[str],
    encode: Callable[[str], list[int]],
    settings: FinetuneSettings,
    end: list[int],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (tokens, targets), both (batch, length), of shuffled passages, each with ``end``."""
    generator = torch.Generator().manual_seed(settings.seed)
    needed = settings.batch * settings.length
    stream: list[int] = []
    while True:
        for row in torch.randperm(len(passages), generator=generator).tolist():
            stream += encode(passages[row]) + end
            while len(stream) > needed:
                cut = torch.tensor(stream[: needed + 1])
                stream = stream[needed:]
                shape = (settings.batch, settings.length)
                yield cut[:-1].view(shape), cut[1:].view(shape)


def train(settings: FinetuneSettings, emit: Callable[[dict], None]) -> None:
    """Train on one backend; call ``emit`` with the records described at the top of this file."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model, tokenizer = load_model(settings.model, None, settings.dtype)
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
        emit({"ready": True, "held_out": before, "resident": rss()})
        for step, (tokens, targets) in enumerate(data):
            started = time.perf_counter()
            loss = model.loss(tokens, targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            emit({"step": step, "loss": value, "seconds": time.perf_counter() - started})
        peak = peak_rss()
        with torch.inference_mode():
            after = model.loss(*held_out).item()
    emit({"done": True, "held_out": after, "peak": peak})


def main(argument: str) -> None:
    """Entry point of the process: train with the settings in `argument` and print the records."""
    train(
        FinetuneSettings(**json.loads(argument)),
        lambda record: print(json.dumps(record), flush=True),
    )


if __name__ == "__main__":
    main(sys.argv[1])
