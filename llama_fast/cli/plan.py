"""`llama-fast plan`: memory, speed and traffic of a training run, before it is started."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast._format import counted, duration
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_json, print_json, tables

if TYPE_CHECKING:
    from llama_fast.train.config import TrainConfig
    from llama_fast.train.plan import TrainingPlan


class PlanCommand(Command):
    """Estimates a training run."""

    name = "plan"
    help = "estimate memory, speed and traffic of a training run on many GPUs"
    extra = "train"
    packages = ("rich",)
    usage = "%(prog)s CONFIG.yaml [--gpus N] [--gpu NAME] [--option VALUE ...]"
    epilog = """All options of `llama-fast train` are also accepted, such as --parallel.shard 8.
Memory is the peak within a step. Times are computed from the assumed MFU."""

    def parser(self, prog: str) -> argparse.ArgumentParser:
        """Return the parser of the options that `llama-fast train` does not have."""
        parser = super().parser(prog)
        parser.allow_abbrev = False  # an abbreviation could be meant for an option of train
        return parser

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that `llama-fast train` does not have."""
        add = parser.add_argument
        add("--gpus", type=int, metavar="N", help="number of GPUs (default: the 8 of one host)")
        add("--gpu", default="h100", metavar="NAME", help="type of GPU (default: h100)")
        add(
            "--mfu",
            type=float,
            default=0.4,
            metavar="X",
            help="assumed model FLOPs utilisation (default: 0.4)",
        )
        add(
            "--gpus-per-host",
            type=int,
            default=8,
            metavar="N",
            help="GPUs connected by NVLink (default: 8)",
        )
        add(
            "--network",
            type=float,
            default=50.0,
            metavar="GB/S",
            help="bandwidth of each GPU to other hosts, in one direction (default: 50, which is "
            "400 Gbit/s)",
        )
        add(
            "--vocab-size",
            type=int,
            metavar="N",
            help="vocabulary size of the data (default: as in its index, or the preset's)",
        )
        add_json(parser)

    def parse(self, argv: Sequence[str], prog: str) -> argparse.Namespace:
        """Return the options, and the training run's configuration as `config`."""
        from llama_fast.cli.train import read_config

        args, rest = self.parser(prog).parse_known_args(argv)
        args.config = read_config(rest, prog)
        return args

    def run(self, args: argparse.Namespace) -> int:
        """Print the estimate.

        Raises:
            FileNotFoundError: there is no such configuration.
            ValueError: an option is out of its range, or sizes contradict each other.
        """
        from llama_fast.data import TokenShards
        from llama_fast.train.plan import advice, has_shape, model_of, plan

        config = args.config
        shards = Path(config.data.train)
        vocab_size = args.vocab_size
        if vocab_size is None and (shards / "index.json").is_file():
            vocab_size = TokenShards(shards).vocab_size
        options = {
            "gpus": 8 if args.gpus is None else args.gpus,
            "gpu": args.gpu,
            "mfu": args.mfu,
            "gpus_per_host": args.gpus_per_host,
            "network": args.network * 1e9,
        }
        shape = model_of(config, vocab_size)
        with tables(args):
            if config.model.init_from is not None and not has_shape(config.model.init_from):
                print(
                    f"model.init_from: {config.model.init_from} is not there yet; the architecture "
                    f"is that of {config.model.preset}"
                )
            estimate = plan(config, shape, **options)
            _show(estimate, [] if estimate.fits else advice(estimate, **options)[:5])
            if args.vocab_size is None and vocab_size is not None:
                _show_vocabulary(config, shards, vocab_size)
        if args.json:
            print_json(estimate.as_dict())
        return ExitCode.OK


def _show_vocabulary(config: TrainConfig, shards: Path, vocab_size: int) -> None:
    """Say that the vocabulary is that of the data, if the preset has another one."""
    from llama_fast.models import LlamaConfig

    preset = LlamaConfig.preset(config.model.preset).vocab_size
    if config.model.init_from is None and preset != vocab_size:
        print(
            f"The vocabulary is that of {shards}, {vocab_size:,} tokens; {config.model.preset} has "
            f"{preset:,} (--vocab-size {preset})"
        )


def _show(plan: TrainingPlan, changes: Sequence[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from llama_fast._terminal import console as new_console

    console, mesh, config = new_console(), plan.mesh, plan.config
    shape = " × ".join(f"{name} {size}" for name, size in mesh._asdict().items() if size > 1)
    console.print(
        Text.assemble(
            (
                f"{plan.model.num_parameters() / 1e6:,.1f} M weights on {mesh.world_size} × "
                f"{plan.gpu.name}",
                "bold",
            ),
            f": {shape or 'one process'}",
        )
    )
    batches = config.optimizer.gradient_accumulation_steps
    console.print(
        f"{config.precision}, checkpointing {config.activation_checkpointing}; a step of "
        f"{counted(plan.tokens, 'token')}: {counted(batches, 'micro-batch')} of "
        f"{config.data.micro_batch_size} × {config.data.seq_len:,} on "
        f"{counted(mesh.data_world_size, 'rank')}"
    )
    memory = Table("memory of a GPU", "GB", title_justify="left")
    memory.columns[1].justify = "right"
    for part, size in plan.memory.items():
        memory.add_row(part, f"{size / 1e9:,.2f}")
    memory.add_section()
    memory.add_row("peak", f"{plan.peak_bytes / 1e9:,.2f}", style="bold")
    memory.add_row("usable", f"{plan.usable / 1e9:,.2f}")
    memory.add_section()
    memory.add_row("host, when saving", f"{plan.checkpoint_bytes / 1e9:,.2f}")
    console.print(memory)
    if plan.traffic:
        console.print(_traffic(plan))
    run = duration(plan.run_seconds, decimals=True)
    console.print(
        f"step {duration(plan.step_seconds, decimals=True)} at {plan.mfu:.0%} of {plan.peak}: "
        f"{plan.tokens_per_second:,.0f} tokens/s, {plan.tokens_per_second / mesh.world_size:,.0f} "
        f"on each GPU"
    )
    console.print(
        f"{counted(config.steps, 'step')}, {config.steps * plan.tokens / 1e9:,.2f} G tokens: "
        f"{run}, {plan.run_seconds * mesh.world_size / 3600:,.1f} GPU hours"
    )
    if plan.fits:
        console.print(Text("fits", "bold green"))
        return
    title = ". These settings would fit, with the same batch size:"
    console.print(Text.assemble(("does not fit", "bold red"), title))
    for change, other in changes:
        console.print(f"  {change}: {other.peak_bytes / 1e9:,.1f} GB")
    if not changes:
        console.print("  none was found; use more GPUs, or a shorter data.seq_len")


def _traffic(plan: TrainingPlan) -> Any:
    from rich.table import Table

    table = Table("sent by a GPU in a step", "along", "what", "GB", "at least")
    for column in table.columns[3:]:
        column.justify = "right"
    for t in plan.traffic:
        table.add_row(
            f"{t.operation} of {t.size}",
            t.dimension,
            t.what,
            f"{t.sent / 1e9:,.3f}",
            duration(plan.seconds_on_link(t), decimals=True),
        )
    return table


COMMAND = PlanCommand()
