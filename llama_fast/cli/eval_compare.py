"""`llama-fast eval compare`: is one run better than another on the same questions?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_compare(evaluations: Any) -> None:
    """Add the subcommand."""
    about = "two runs on the same questions: differences with intervals, answers that changed"
    parser = evaluations.add_parser("compare", help=about, description=about)
    parser.add_argument("a", metavar="RUN_A", help="folder of a run: results.json and samples")
    parser.add_argument("b", metavar="RUN_B", help="folder of the other")
    parser.add_argument(
        "--html", type=Path, metavar="OUT", help="also write a page to look at both, a file"
    )
    parser.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="of the bootstrap (10,000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.set_defaults(do=compare_runs)


def compare_runs(args: argparse.Namespace) -> int:
    """Print the comparison; write the page if asked."""
    from llama_fast._screen import Screen
    from llama_fast.eval.report import read_run
    from llama_fast.eval.report.compare import compare, table

    comparison = compare(
        read_run(args.a), read_run(args.b), resamples=args.resamples, seed=args.seed
    )
    screen = Screen()
    screen.console.print(table(comparison))
    for notice in comparison.notices:
        screen.console.print(notice, markup=False, soft_wrap=True)
    if args.html is not None:
        from llama_fast.eval.report.html import write_page

        write_page(args.html, comparison.a, comparison.b, comparison=comparison)
        screen.console.print(f"page: {args.html}", markup=False, soft_wrap=True)
    return 0
