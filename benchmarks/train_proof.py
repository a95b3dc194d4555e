"""Trains language models on real text from scratch, each within ten minutes on two cores.

    python -m benchmarks.train_proof --data FOLDER [--corpus dickens] [--out DIR]
                                                               (`make train-proof`)

FOLDER has `corpora/dickens.txt.gz` and `corpora/tinyshakespeare.txt`. The last tenth of each text
is held out. A model must predict it with fewer bits per byte than the best of `text_baselines`: a
compressor, and n-grams with Kneser-Ney smoothing, on the same split. The first steps are repeated
with PyTorch's ops and with ours, to show that the loss curves are the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import llama_fast
from llama_fast import info
from llama_fast._write import write_whole
from llama_fast.cli import main as command_line
from llama_fast.cli import train as train_command
from llama_fast.data import PackedLoader, TokenShards
from llama_fast.train.config import TrainConfig
from llama_fast.train.metrics import StepMetrics, read_metrics
from llama_fast.train.run import TrainingRun

from . import text_baselines
from .report import machine_slug

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = "LLAMA_FAST_TEST_DATA"  # environment variable, as for the tests
HELD_OUT = 0.1
MINUTES = 10


@dataclass(frozen=True)
class Corpus:
    """A text to train on.

    Attributes:
        file: path in the data folder.
        vocab_size: vocabulary size of the BPE tokenizer, which is trained on the training part.
        published: description -> bits per byte that others reached on the same split.
    """

    file: str
    vocab_size: int
    published: dict[str, float]

    def read(self, data: Path) -> tuple[bytes, bytes]:
        """Read the text; return (training part, held-out part)."""
        path = data / self.file
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        cut = int(len(text) * (1 - HELD_OUT))
        return text[:cut], text[cut:]


# nanoGPT's README, validation losses in nats per character, of one byte each here; its split too.
CORPORA = {
    "dickens": Corpus("corpora/dickens.txt.gz", 4096, {}),
    "tinyshakespeare": Corpus(
        "corpora/tinyshakespeare.txt",
        1024,
        {
            "nanoGPT, 3 minutes on a laptop's CPU": 1.88 / math.log(2),
            "nanoGPT, 10.7 M weights, 3 minutes on an A100": 1.4697 / math.log(2),
        },
    ),
}


def prepare(corpus: Corpus, data: Path, folder: Path) -> tuple[bytes, bytes]:
    """Write shards `train` and `valid` with `llama-fast tokenize`; return the two texts."""
    parts = corpus.read(data)
    for name, text in zip(("train", "valid"), parts, strict=True):
        path = folder / f"{name}.txt"
        path.write_bytes(text)
        tokenizer = (
            ["--train-bpe", str(corpus.vocab_size)]
            if name == "train"
            else ["--tokenizer", str(folder / "train" / "tokenizer" / "tokenizer.json")]
        )
        # latin-1 maps every byte to a character, whatever the encoding of the text is.
        arguments = [str(path), "--encoding", "latin-1", "--out", str(folder / name), *tokenizer]
        if command_line.main(["tokenize", *arguments]):
            raise RuntimeError(f"llama-fast tokenize {' '.join(arguments)} failed")
    return parts


def config_of(name: str, folder: Path, *more: str) -> TrainConfig:
    """The configuration `configs/NAME.yaml` with the shards in `folder`."""
    return train_command.read_config(
        [
            str(REPOSITORY / "configs" / f"{name}.yaml"),
            f"--data.train={folder / 'train'}",
            f"--data.valid={folder / 'valid'}",
            *more,
        ]
    )


@torch.no_grad()
def bits_per_byte(run: TrainingRun, folder: Path, held_out: bytes) -> float:
    """Bits per byte of the held-out text: loss of all tokens in nats / ln 2 / bytes.

    The text is cut into sequences of `seq_len` tokens, each predicted without the tokens before it.
    The token at the end of the text is included.
    """
    shards = TokenShards(folder / "valid")
    loader = PackedLoader(shards, seq_len=run.config.data.seq_len, batch_size=1, shuffle=False)
    run.model.eval()
    nats = 0.0
    for _ in range(loader.batches_left()):
        batch = next(loader)
        nats += run.model.loss(
            batch.tokens, batch.targets, cu_seqlens=batch.cu_seqlens, reduction="sum"
        ).item()
    run.model.train()
    return nats / math.log(2) / len(held_out)


def train(
    config: TrainConfig, backend: str = "auto", nudge: bool = False
) -> tuple[TrainingRun, list[StepMetrics], float]:
    """Train; return (run, steps, seconds). `nudge` first scales the embedding by 1 + epsilon."""
    begin = time.perf_counter()
    with llama_fast.use_backend(backend):
        run = TrainingRun(config, log=lambda line: print(f"  {line}", flush=True))
        if nudge:
            with torch.no_grad():
                run.model.embedding.weight.mul_(1 + torch.finfo(torch.float32).eps)
        run.train()
    return run, read_metrics(Path(config.out) / "metrics.csv"), time.perf_counter() - begin


def prove(name: str, data: Path, folder: Path, curve_steps: int, quick: bool) -> dict[str, Any]:
    """Train on one corpus and compare; return all results for JSON."""
    corpus = CORPORA[name]
    print(f"{name}: baselines", flush=True)
    begin = time.perf_counter()
    text, held_out = prepare(corpus, data, folder)
    tokenized = time.perf_counter() - begin
    bars = {"xz -9e, the training text before it": text_baselines.xz(text, held_out)}
    for order, bits in enumerate(text_baselines.ngrams(text, held_out), 1):
        bars[f"Kneser-Ney, {order} bytes"] = bits
    bar = min(bars.values())
    print(f"  the best of xz and n-grams: {bar:.3f} bits per byte", flush=True)
    results: dict[str, Any] = {"bytes": [len(text), len(held_out)], "bars": bars, "bar": bar}
    results["published"] = corpus.published

    some = (f"--steps={max(20, curve_steps)}", "--optimizer.warmup_steps=10") if quick else ()
    config = config_of(name, folder, f"--out={folder / 'run'}", *some)
    run, steps, seconds = train(config)
    results |= {
        "weights": run.model.config.num_parameters(),
        "steps": len(steps),
        "tokens": sum(step.tokens for step in steps),
        "seconds_to_tokenize": tokenized,
        "seconds_to_train": seconds,
        "valid_bits_per_byte": bits_per_byte(run, folder, held_out),
        "curve": [step.loss for step in steps],
        "valid_curve": [[s.step, s.valid_loss] for s in steps if s.valid_loss is not None],
    }
    del run
    return results | compare(name, folder, curve_steps)


def compare(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Losses of the first steps on a corpus in float32 without dropout.

    The steps run with PyTorch's ops (`stock`), with ours (`ours`), and with PyTorch's ops from
    weights that differ by rounding (`nudged`), to show how far rounding alone separates two curves.
    """
    curves = {}
    for side, backend in (("stock", "torch"), ("ours", "auto"), ("nudged", "torch")):
        print(f"  {steps} steps with backend {backend}", flush=True)
        config = config_of(
            name,
            folder,
            f"--out={folder / side}",
            f"--steps={steps}",
            "--precision=float32",
            "--model.overrides.p_dropout=0.0",  # each backend draws dropout differently
        )
        curves[side] = [step.loss for step in train(config, backend, side == "nudged")[1]]
    apart = {
        side: max(abs(a - b) for a, b in zip(curves["stock"], curves[side], strict=True))
        for side in ("ours", "nudged")
    }
    return {**curves, "apart": apart}


def main(argv: list[str]) -> int:
    """Train, compare, print and write.

    Returns:
        1 if a model did not beat the baselines, or took too long.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA), metavar="FOLDER")
    parser.add_argument("--corpus", action="append", choices=tuple(CORPORA))
    parser.add_argument("--curve-steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few steps: does it run?")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for JSON and markdown")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="where the curves are drawn")
    arguments = parser.parse_args(argv)
    if arguments.data is None or not (arguments.data / "corpora").is_dir():
        parser.error(
            f"--data: expected a folder with corpora/ in it (or {DATA}), got {arguments.data}"
        )
    torch.set_num_threads(arguments.threads)
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.corpus or CORPORA:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = prove(
                name, arguments.data, Path(folder), arguments.curve_steps, arguments.quick
            )
    lines = table(results)
    print("\n".join(["", *lines]))
    if arguments.out is not None:
        write(arguments.out / "train-proof.json", results)
    if arguments.picture is not None:
        from .train_proof_plot import draw

        draw(results, arguments.picture)
        print(arguments.picture)
    reached = all(
        one["valid_bits_per_byte"] < one["bar"] and one["seconds_to_train"] < 60 * MINUTES
        for one in results.values()
    )
    return 0 if reached or arguments.quick else 1


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """A markdown table with a row per corpus."""
    lines = [
        "| corpus (the last tenth is held out) | bits per byte | baseline: best n-gram | xz -9e | "
        "published | model | training | difference between kernels and stock ops | "
        "between stock ops and stock ops, perturbed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in results.items():
        published = ", ".join(f"{bits:.2f} ({what})" for what, bits in one["published"].items())
        lines.append(
            f"| {name} | **{one['valid_bits_per_byte']:.3f}** | {one['bar']:.3f} | "
            f"{next(iter(one['bars'].values())):.3f} | {published or '–'} | "
            f"{one['weights'] / 1e6:.1f} M weights | {one['tokens'] / 1e6:.1f} M tokens in "
            f"{one['seconds_to_train'] / 60:.1f} minutes | at most "
            f"{one['apart']['ours']:.1e} nats in {len(one['stock'])} steps | "
            f"at most {one['apart']['nudged']:.1e} nats |"
        )
    return lines


def write(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write all curves as JSON, and a summary as markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = info.collect()
    whole = {"machine": machine, "slug": machine_slug("cpu"), "corpora": results}
    write_whole(path, json.dumps(whole, indent=1) + "\n")
    cpu = machine["cpu"]
    text = [
        "# Training from scratch in ten minutes on two cores",
        "",
        f"`make train-proof` on {cpu['model']}, {cpu['instruction_set']}, torch "
        f"{machine['versions']['torch']}. The runs are `configs/dickens.yaml` and "
        "`configs/tinyshakespeare.yaml`.",
        "",
        *table(results),
        "",
        EXPLAINED,
    ]
    write_whole(path.with_suffix(".md"), "\n".join(text))
    print(f"{path} and .md")


EXPLAINED = """\
Bits per byte are the sum of the loss over all tokens of the held-out text in nats, divided by
ln 2 and by the number of bytes. The baseline was chosen before the runs: interpolated
Kneser-Ney models over bytes of orders 1 to 8, of which the best one on the held-out text
counts. The value of `xz -9e` is the number of bits that the held-out text adds to the archive
of the training text. nanoGPT's values are those of its README, per character, which is a byte
here. It uses the same split, but evaluates on random windows of the held-out text.

The last two columns compare the losses of the first steps, in float32, with the same seed and
batches. Dropout is off, because each implementation draws its own random numbers. One run uses
PyTorch's own functions (`llama_fast.use_backend("torch")`), the other the kernels. Training
amplifies rounding differences from step to step. The last column shows this for PyTorch's own
functions: it is the difference between two runs with them, one of which starts with an
embedding scaled by 1 + 1.2e-7.
"""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
