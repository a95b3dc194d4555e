"""`llama-fast data plant`: random secrets in a copy of a corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_fast._format import counted
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_out, add_seed


class Plant(Command):
    """Plants canaries."""

    name = "plant"
    help = "plant random secrets in a copy of a corpus, for `llama-fast eval canary`"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "source", metavar="SOURCE", type=Path, help=".txt or .jsonl file (also .gz)"
        )
        add_out(parser, "new folder for the copy", required=True)
        parser.add_argument(
            "--format",
            default="The secret number is {digits}",
            metavar="TEXT",
            help="text with {digits} in it (default: '%(default)s')",
        )
        parser.add_argument(
            "--digits",
            type=int,
            default=6,
            metavar="N",
            help="number of random digits (default: %(default)s)",
        )
        parser.add_argument(
            "--repeats",
            default="0,1,5,25",
            metavar="K,...",
            help="one canary for each number, planted that many times; 0 is a control (default: "
            "%(default)s)",
        )
        parser.add_argument(
            "--key",
            default="text",
            metavar="FIELD",
            help="field of a .jsonl row that contains the text (default: %(default)s)",
        )
        add_seed(parser, "the digits and their places")

    def run(self, args: argparse.Namespace) -> int:
        """Write the corpus with canaries, and the list of them."""
        from llama_fast.data.canaries import plant

        try:
            repeats = [int(k) for k in args.repeats.split(",")]
        except ValueError:
            raise ValueError(
                f"--repeats: expected numbers such as 0,1,5, got {args.repeats!r}"
            ) from None
        planted = plant(
            args.source,
            args.out,
            format=args.format,
            digits=args.digits,
            repeats=repeats,
            key=args.key,
            seed=args.seed,
        )
        print(
            f"{args.out}: {counted(len(planted.canaries), 'canary')}, "
            f"{counted(sum(repeats), 'line')} planted"
        )
        return ExitCode.OK


COMMAND = Plant()
