"""`llama-fast export`: a checkpoint or a training run in a format that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from llama_fast._format import counted
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_dtype, add_model, add_out, add_tokenizer

if TYPE_CHECKING:
    from llama_fast.models import LLaMA
    from llama_fast.tokenizers import Tokenizer


class Export(Command):
    """Writes a model in another format."""

    name = "export"
    help = "write a model for transformers, Meta's code or llama.cpp"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        add_model(parser)
        parser.add_argument(
            "--to",
            required=True,
            choices=("hf", "meta", "gguf"),
            help="hf: safetensors and config.json; meta: consolidated.00.pth and params.json; "
            "gguf: one file for llama.cpp",
        )
        add_out(parser, "new folder, or new file with --to gguf", metavar="PATH", required=True)
        add_dtype(parser)
        parser.add_argument(
            "--average",
            action="store_true",
            help="export the moving average of a training run's weights instead of the weights",
        )
        add_tokenizer(parser, "none to leave it out")
        parser.add_argument("--force", action="store_true", help="replace a checkpoint at PATH")

    def run(self, args: argparse.Namespace) -> int:
        """Write the model, and print what was written.

        Raises:
            FileNotFoundError: there is no such model.
            CheckpointError, RunCheckpointError: the checkpoint is damaged.
            FileExistsError: --out exists.
            ValueError: the format cannot express the model, or --dtype its weights.
            OSError: the disk is full; --out is unchanged.
        """
        from llama_fast.models import save

        if args.out.exists() and not args.force:
            raise FileExistsError(f"--out: {args.out} exists; --force replaces it")
        model, tokenizer = _read(args)
        if args.dtype is not None:
            _convert(model, args.dtype)
        save(model, args.out, tokenizer, to=args.to, overwrite=args.force)
        files = args.out.iterdir() if args.out.is_dir() else [args.out]
        size = sum(file.stat().st_size for file in files)
        dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
        print(
            f"{args.out}: {model.config.num_parameters() / 1e6:,.1f} M weights in {dtype}, "
            f"{size / 1e6:,.1f} MB, {_about(tokenizer, args)}"
        )
        return ExitCode.OK


def _read(args: argparse.Namespace) -> tuple[LLaMA, Tokenizer | None]:
    from llama_fast.models.loading import as_tokenizer, is_run, locate, read_model

    path = locate(args.model)
    if args.average and not is_run(path):
        raise ValueError(f"--average: expected the folder of a training run, got {args.model}")
    model, own = read_model(path, with_tokenizer=args.tokenizer is None, average=args.average)
    original = path / "tokenizer.model"
    if args.to != "hf" and original.is_file():
        own = _unless_extended(own, original)
    if args.tokenizer == "none":
        return model, None
    tokenizer = own if args.tokenizer is None else as_tokenizer(args.tokenizer)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"--tokenizer: expected at most the model's {model.config.vocab_size} tokens, got "
            f"{tokenizer.vocab_size}"
        )
    return model, tokenizer


def _unless_extended(own: Tokenizer | None, original: Path) -> Tokenizer | None:
    """Return the tokenizer.model that `own` was converted from, unless `own` has more tokens."""
    from llama_fast.tokenizers import load_tokenizer

    loaded = load_tokenizer(original)
    return own if own is not None and own.vocab_size != loaded.vocab_size else loaded


def _convert(model: LLaMA, dtype: str) -> None:
    import torch

    finite = {name for name, weight in model.named_parameters() if weight.isfinite().all()}
    model.to(getattr(torch, dtype))
    for name, weight in model.named_parameters():
        if name in finite and not weight.isfinite().all():
            raise ValueError(
                f"--dtype: {name} has values outside the range of {dtype}, not of bfloat16"
            )


def _about(tokenizer: Tokenizer | None, args: argparse.Namespace) -> str:
    if tokenizer is None:
        return "no tokenizer"
    if args.to == "meta" and not (args.out / "tokenizer.model").exists():
        return "no tokenizer (this tokenizer cannot be written as a tokenizer.model)"
    return f"tokenizer of {counted(tokenizer.vocab_size, 'token')}"


COMMAND = Export()
