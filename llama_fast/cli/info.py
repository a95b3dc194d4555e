"""`llama-fast info`: what is installed, what was built, and what this machine can do."""

from __future__ import annotations

import argparse

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode


class Info(Command):
    """Prints facts about the installation."""

    name = "info"
    help = "print versions, processor, GPU, and the backends of every op"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def run(self, args: argparse.Namespace) -> int:
        """Print the facts."""
        from llama_fast import info

        facts = info.collect()
        print(info.as_json(facts) if args.json else info.as_text(facts, info.terminal_width()))
        return ExitCode.OK


COMMAND = Info()
