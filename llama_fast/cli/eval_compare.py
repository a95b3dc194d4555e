"""`llama-fast eval compare`: whether one run is better than another on the same questions."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_json, add_seed, print_json, tables


class Compare(Command):
    """Compares two runs of an evaluation."""

    name = "compare"
    help = "compare two runs on the same questions: differences with intervals, changed answers"
    extra = "eval"
    packages = ("rich",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument("a", metavar="RUN_A", help="folder of a run: results.json and samples")
        parser.add_argument("b", metavar="RUN_B", help="folder of the other run")
        parser.add_argument(
            "--html", type=Path, metavar="FILE", help="also write an HTML page that shows both runs"
        )
        parser.add_argument(
            "--flips",
            type=int,
            default=10_000,
            metavar="N",
            help="draws of the sign-flip test where it is not exact (default: 10,000)",
        )
        add_seed(parser, "the sign-flip test")
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Print the comparison, and write the page if one is asked for."""
        from llama_fast._screen import Screen
        from llama_fast.eval.report import read_run
        from llama_fast.eval.report.compare import compare, table

        if args.flips < 1:
            raise ValueError(f"--flips: expected at least 1, got {args.flips}")
        comparison = compare(read_run(args.a), read_run(args.b), flips=args.flips, seed=args.seed)
        with tables(args):
            screen = Screen()
            if comparison.conditions is not None:
                screen.sentence(comparison.conditions)
            screen.console.print(table(comparison, screen.console.width))
            for notice in comparison.notices:
                screen.sentence(notice)
            if args.html is not None:
                from llama_fast.eval.report.html import write_page

                write_page(args.html, comparison.a, comparison.b, comparison=comparison)
                screen.console.print(f"page: {args.html}", markup=False, soft_wrap=True)
        if args.json:
            print_json(
                {
                    "a": comparison.a.name,
                    "b": comparison.b.name,
                    "conditions": comparison.conditions,
                    "tasks": [dataclasses.asdict(row) for row in comparison.tasks],
                    "overall": [dataclasses.asdict(row) for row in comparison.overall],
                    "notices": list(comparison.notices),
                }
            )
        return ExitCode.OK


COMMAND = Compare()
