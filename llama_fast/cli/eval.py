"""`llama-fast eval`: what a model knows; what two runs differ in; what it remembers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llama_fast.cli.eval_canary import add_canary
from llama_fast.cli.eval_compare import add_compare
from llama_fast.cli.eval_run import add_run_arguments, evaluate_model

HELP = "evaluate a model on benchmarks, compare two runs, measure what it memorised"


def main(argv: Sequence[str]) -> int:
    """Evaluate the model that is named first, or do what `compare` or `canary` say."""
    parser = argparse.ArgumentParser(prog="llama-fast eval", description=HELP)
    if argv and argv[0] in ("compare", "canary"):
        evaluations = parser.add_subparsers(required=True)
        add_compare(evaluations)
        add_canary(evaluations)
    else:
        add_run_arguments(parser)
        parser.set_defaults(do=evaluate_model)
    args = parser.parse_args(argv)
    return int(args.do(args))
