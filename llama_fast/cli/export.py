"""`llama-fast export`: a checkpoint or a training run in a format that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from llama_fast.models import LLaMA, save
from llama_fast.models.loading import is_run, locate, read_model
from llama_fast.tokenizers import Tokenizer, load_tokenizer

HELP = "write a model for transformers, Meta's code or llama.cpp"

DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "model",
        type=Path,
        help="Hugging Face folder, GGUF, Meta or llama2.c file, or the folder of a training run",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=("hf", "meta", "gguf"),
        help="hf: safetensors and config.json; meta: consolidated.00.pth and params.json; gguf",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="folder, or with gguf file, to make"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    parser.add_argument(
        "--average",
        action="store_true",
        help="the moving average of a run's weights (optimizer.ema_decay) instead of the weights",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, tokenizer.model or folder; none leaves it out (default: the model's)",
    )
    parser.add_argument("--force", action="store_true", help="replace a checkpoint at PATH")


def run(args: argparse.Namespace) -> int:
    """Write the model; prints what was written.

    Raises:
        FileNotFoundError, CheckpointError: there is no such model, or it is damaged.
        FileExistsError: something is at --out.
        ValueError: the format cannot express the model, or its weights are too large for --dtype.
        OSError: the disk is full; nothing is left at --out, or what was there before.
    """
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
    return 0


def _read(args: argparse.Namespace) -> tuple[LLaMA, Tokenizer | None]:
    path = locate(args.model)
    if args.average and not is_run(path):
        raise ValueError(f"--average: expected the folder of a training run, got {args.model}")
    model, own = read_model(path, with_tokenizer=args.tokenizer is None, average=args.average)
    original = path / "tokenizer.model"
    if args.to != "hf" and original.is_file():
        own = _unless_extended(own, original)
    if args.tokenizer == "none":
        return model, None
    tokenizer = own if args.tokenizer is None else load_tokenizer(args.tokenizer)
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"--tokenizer: expected at most the model's {model.config.vocab_size} tokens, got "
            f"{tokenizer.vocab_size}"
        )
    return model, tokenizer


def _unless_extended(own: Tokenizer | None, original: Path) -> Tokenizer | None:
    """The tokenizer.model that a tokenizer.json was made of, if it has all of its tokens."""
    found = load_tokenizer(original)
    return own if own is not None and own.vocab_size != found.vocab_size else found


def _convert(model: LLaMA, dtype: str) -> None:
    finite = {name for name, weight in model.named_parameters() if weight.isfinite().all()}
    model.to(getattr(torch, dtype))
    for name, weight in model.named_parameters():
        if name in finite and not weight.isfinite().all():
            raise ValueError(
                f"--dtype: {dtype} is too narrow for the numbers in {name}; bfloat16 is not"
            )


def _about(tokenizer: Tokenizer | None, args: argparse.Namespace) -> str:
    if tokenizer is None:
        return "no tokenizer"
    if args.to == "meta" and not (args.out / "tokenizer.model").exists():
        return "no tokenizer (a tokenizer.json has no form as tokenizer.model)"
    return f"tokenizer of {tokenizer.vocab_size:,} tokens"
