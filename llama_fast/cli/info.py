"""`llama-fast info`: what is installed, what was built and what this machine can do."""

from __future__ import annotations

import argparse

from llama_fast import info

HELP = "print versions, processor, GPU, and the backends of every op"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the facts; always 0."""
    facts = info.collect()
    print(info.as_json(facts) if args.json else info.as_text(facts))
    return 0
