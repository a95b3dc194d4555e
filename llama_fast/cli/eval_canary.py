"""`llama-fast eval canary`: how well a model remembers what was planted in its training data."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import (
    add_device,
    add_dtype,
    add_json,
    add_model,
    add_out,
    add_seed,
    add_tokenizer,
    print_json,
    tables,
)

if TYPE_CHECKING:
    from llama_fast.eval.canary import ExposureReport


class Canary(Command):
    """Measures the exposure of planted canaries."""

    name = "canary"
    help = "measure how well a model remembers what `llama-fast data plant` put into its data"
    extra = "eval"
    packages = ("rich",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        add_model(parser)
        add_tokenizer(parser)
        parser.add_argument(
            "--canaries", required=True, metavar="FILE", help="canaries.json, or its folder"
        )
        parser.add_argument(
            "--samples",
            type=int,
            metavar="N",
            help="compare with N random numbers and extrapolate; 0 compares with all of them "
            "(default: all up to 100,000, else 10,000)",
        )
        add_dtype(parser)
        add_device(parser)
        add_seed(parser, "the samples")
        add_out(parser, "also write the report as JSON", metavar="FILE")
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print the exposure of each canary."""
        from llama_fast._device import device_of
        from llama_fast._screen import Screen
        from llama_fast.data.canaries import read_canaries
        from llama_fast.eval.canary import ENUMERATE, SAMPLE, measure
        from llama_fast.models.loading import load_model

        if args.samples is not None and args.samples < 0:
            raise ValueError(f"--samples: expected a number >= 0, got {args.samples}")
        device = device_of(args.device or "auto")
        planted = read_canaries(args.canaries)
        sample = args.samples or None
        if args.samples is None and planted.space > ENUMERATE:
            sample = SAMPLE
        model, tokenizer = load_model(args.model, args.tokenizer, args.dtype)
        model.to(device)
        with tables(args):
            screen = Screen()
            with screen.bar("Scoring candidates", "texts") as progress:
                report = measure(
                    model, tokenizer, planted, sample=sample, seed=args.seed, progress=progress
                )
            screen.console.print(_table(report))
        content = {"model": args.model, "format": planted.format, **dataclasses.asdict(report)}
        if args.out is not None:
            args.out.write_text(json.dumps(content, indent=1), encoding="utf-8")
        if args.json:
            print_json(content)
        return ExitCode.OK


def _table(report: ExposureReport) -> Any:
    from rich.table import Table

    against = f"all {report.compared:,} numbers"
    if report.fit is not None:
        against = f"{report.compared:,} random numbers (skew-normal fit, p = {report.fit:.2g})"
    table = Table(
        title=f"Exposure of {report.space_bits:.1f} bits, against {against}", title_justify="left"
    )
    for name in ("canary", "planted", "log-perplexity (bits)", "rank", "exposure (bits)"):
        table.add_column(name, justify="right")
    for exposure in report.exposures:
        rank = "" if exposure.rank is None else f"{exposure.rank:,}"
        values = (f"{exposure.log_perplexity:.2f}", rank, f"{exposure.exposure:.2f}")
        table.add_row(exposure.canary.digits, str(exposure.canary.repeats), *values)
    return table


COMMAND = Canary()
