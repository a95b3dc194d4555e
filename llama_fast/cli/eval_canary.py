"""`llama-fast eval canary`: how well a model remembers what was planted in its training data."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from llama_fast.cli.eval_run import add_model_arguments


def add_canary(evaluations: Any) -> None:
    """Add the subcommand."""
    about = "how well a model remembers what `llama-fast data plant` put into its training data"
    parser = evaluations.add_parser("canary", help=about, description=about)
    add_model_arguments(parser)
    parser.add_argument(
        "--canaries", required=True, metavar="FILE", help="canaries.json, or its folder"
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="compare with N random numbers and extrapolate; 0 goes through all of them "
        "(default: all up to 100,000, else 10,000)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.set_defaults(do=canary)


def canary(args: argparse.Namespace) -> int:
    """Print the exposure of each canary."""
    from llama_fast._screen import Screen
    from llama_fast.data.canaries import read_canaries
    from llama_fast.eval.canary import ENUMERATE, SAMPLE, measure
    from llama_fast.models.loading import load_model

    if args.samples is not None and args.samples < 0:
        raise ValueError(f"samples: expected a number >= 0, got {args.samples}")
    planted = read_canaries(args.canaries)
    sample = args.samples or None
    if args.samples is None and planted.space > ENUMERATE:
        sample = SAMPLE
    model, tokenizer = load_model(args.model, args.tokenizer)
    screen = Screen()
    with screen.bar("Scoring candidates", "texts") as progress:
        report = measure(
            model, tokenizer, planted, sample=sample, seed=args.seed, progress=progress
        )
    screen.console.print(_table(report))
    if args.out is not None:
        content = {"model": args.model, "format": planted.format, **dataclasses.asdict(report)}
        args.out.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0


def _table(report: Any) -> Any:
    from rich.table import Table

    against = f"all {report.compared:,} numbers"
    if report.fit is not None:
        against = f"{report.compared:,} random numbers (skew-normal fit, p = {report.fit:.2g})"
    table = Table(
        title=f"Exposure of {report.space_bits:.1f} bits, against {against}", title_justify="left"
    )
    for name in ("canary", "planted", "log-perplexity (bits)", "rank", "exposure (bits)"):
        table.add_column(name, justify="right")
    for found in report.exposures:
        rank = "" if found.rank is None else f"{found.rank:,}"
        values = (f"{found.log_perplexity:.2f}", rank, f"{found.exposure:.2f}")
        table.add_row(found.canary.digits, str(found.canary.repeats), *values)
    return table
