"""`llama-fast plan`: memory, speed and traffic of a run, before it is started."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast._format import duration

if TYPE_CHECKING:
    from llama_fast.train.plan import TrainingPlan

HELP = "estimate memory, speed and traffic of a training run on many GPUs"

EPILOG = """All options of `llama-fast train` are understood too, such as --parallel.shard 8.
Memory is that of the worst moment of a step; times follow from the MFU that is assumed."""


def parser() -> argparse.ArgumentParser:
    """The options that `llama-fast train` does not have."""
    found = argparse.ArgumentParser(
        prog="llama-fast plan",
        usage="%(prog)s CONFIG.yaml [--gpus N] [--gpu NAME] [--mfu X] [--optimizer.lr X ...]",
        description=HELP,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    found.add_argument("--gpus", type=int, metavar="N", help="all together (default: a host's 8)")
    found.add_argument("--gpu", default="h100", metavar="NAME", help="kind of GPU (default: h100)")
    found.add_argument(
        "--mfu", type=float, default=0.4, metavar="X", help="share of its rate (default: 0.4)"
    )
    found.add_argument(
        "--gpus-per-host", type=int, default=8, metavar="N", help="joined by NVLink (default: 8)"
    )
    found.add_argument(
        "--network",
        type=float,
        default=50.0,
        metavar="GB/S",
        help="of each GPU to other hosts, one way (default: 50, which is 400 Gbit/s)",
    )
    found.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="of the data (default: its own, or the preset's)",
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there as well")
    return found


def main(argv: Sequence[str]) -> int:
    """Print the estimate.

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: an option out of its range, or sizes that do not fit each other.
    """
    from llama_fast.cli.train import read_config
    from llama_fast.data import TokenShards
    from llama_fast.train.plan import advice, model_of, plan

    args, rest = parser().parse_known_args(argv)
    config = read_config(rest)
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
    found = plan(config, model_of(config, vocab_size), **options)
    _show(found, [] if found.fits else advice(found, **options)[:5])
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 0


def _show(found: TrainingPlan, changes: Sequence[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from llama_fast._terminal import console as new_console

    console, mesh, config = new_console(), found.mesh, found.config
    shape = " × ".join(f"{name} {size}" for name, size in mesh._asdict().items() if size > 1)
    console.print(
        Text.assemble(
            (
                f"{found.model.num_parameters() / 1e6:,.1f} M weights on {mesh.ranks} × "
                f"{found.gpu.name}",
                "bold",
            ),
            f": {shape or 'one process'}",
        )
    )
    console.print(
        f"{config.precision}, checkpointing {config.activation_checkpointing}; a step of "
        f"{found.tokens:,} tokens: {config.optimizer.gradient_accumulation_steps} micro-batches of "
        f"{config.data.micro_batch_size} × {config.data.seq_len:,} on {mesh.data_ranks} ranks"
    )
    memory = Table("memory of a GPU", "GB", title_justify="left")
    memory.columns[1].justify = "right"
    for kind, size in found.memory.items():
        memory.add_row(kind, f"{size / 1e9:,.2f}")
    memory.add_section()
    memory.add_row("peak", f"{found.peak_bytes / 1e9:,.2f}", style="bold")
    memory.add_row("usable", f"{found.usable / 1e9:,.2f}")
    console.print(memory)
    if found.traffic:
        console.print(_traffic(found))
    run = duration(found.run_seconds, decimals=True)
    console.print(
        f"step {duration(found.step_seconds, decimals=True)} at {found.mfu:.0%} of {found.peak}: "
        f"{found.tokens_per_second:,.0f} tokens/s, {found.tokens_per_second / mesh.ranks:,.0f} on "
        f"each GPU"
    )
    console.print(
        f"{config.steps:,} steps, {config.steps * found.tokens / 1e9:,.2f} G tokens: "
        f"{run}, {found.run_seconds * mesh.ranks / 3600:,.1f} GPU hours"
    )
    if found.fits:
        console.print(Text("fits", "bold green"))
        return
    said = ". These settings would, at the same batch size:"
    console.print(Text.assemble(("does not fit", "bold red"), said))
    for change, other in changes:
        console.print(f"  {change}: {other.peak_bytes / 1e9:,.1f} GB")
    if not changes:
        console.print("  nothing that was tried: more GPUs, or a shorter data.seq_len")


def _traffic(found: TrainingPlan) -> Any:
    from rich.table import Table

    table = Table("sent by a GPU in a step", "along", "what", "GB", "at least")
    for column in table.columns[3:]:
        column.justify = "right"
    for t in found.traffic:
        table.add_row(
            f"{t.operation} of {t.size}",
            t.dimension,
            t.what,
            f"{t.sent / 1e9:,.3f}",
            duration(found.seconds_on_link(t), decimals=True),
        )
    return table
