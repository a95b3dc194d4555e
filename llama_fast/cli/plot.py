"""`llama-fast plot`: the curves of training runs as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_fast._write import save_picture

HELP = "draw loss, speed, learning rate and gradient norm of one or several runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument("run", nargs="+", type=Path, help="folder of a run (with metrics.csv)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("curves.png"),
        metavar="FILE",
        help="picture to be written, .png, .svg or .pdf (default: curves.png)",
    )
    parser.add_argument(
        "--x",
        choices=("step", "tokens", "hours"),
        default="step",
        help="horizontal axis; hours are those of training alone (default: step)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw the picture.

    Raises:
        FileNotFoundError: a folder without metrics.csv.
        ValueError: a run without a step, or a file of another kind.
    """
    try:
        from llama_fast.train.plot import figure
    except ImportError as error:
        raise ImportError(f"{error}; plot needs: pip install llama_fast[train]") from None
    if args.out.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out: expected a .png, .svg or .pdf file, got {args.out}")
    picture = figure(args.run, args.x)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(picture, args.out)
    print(args.out)
    return 0
