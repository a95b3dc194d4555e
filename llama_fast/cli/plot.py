"""`llama-fast plot`: the curves of training runs as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_out

SUFFIXES = (".png", ".svg", ".pdf")


class Plot(Command):
    """Draws the curves of training runs."""

    name = "plot"
    help = "draw loss, speed, learning rate and gradient norm of training runs"
    extra = "train"
    packages = ("matplotlib",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "run", nargs="+", metavar="RUN", type=Path, help="folder of a run (with metrics.csv)"
        )
        add_out(
            parser,
            "picture to write: .png, .svg or .pdf (default: %(default)s)",
            metavar="FILE",
            default=Path("curves.png"),
        )
        parser.add_argument(
            "--x",
            choices=("step", "tokens", "hours"),
            default="step",
            help="horizontal axis; hours count training alone (default: step)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Draw the picture.

        Raises:
            FileNotFoundError: a folder has no metrics.csv.
            ValueError: a run has no step, or --out has another suffix.
        """
        from llama_fast._write import save_picture
        from llama_fast.train.plot import figure

        if args.out.suffix not in SUFFIXES:
            raise ValueError(f"--out: expected a .png, .svg or .pdf file, got {args.out}")
        picture = figure(args.run, args.x)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save_picture(picture, args.out)
        print(args.out)
        return ExitCode.OK


COMMAND = Plot()
