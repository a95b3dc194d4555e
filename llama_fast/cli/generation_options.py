"""Options that `llama-fast generate` and `llama-fast chat` share."""

from __future__ import annotations

import argparse
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, with which tokenizer, in which precision."""
    parser.add_argument(
        "model", help="Hugging Face folder, GGUF, Meta, llama2.c, or a training run's folder"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.json, tokenizer.model, tok*.bin, .gguf, a folder with one, or byte "
        "(default: the model's own)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the model (default: as stored)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if any)")


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """How tokens are drawn, and what ends a text."""
    add = parser.add_argument
    add(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="the most tokens that are added (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token; higher is more varied (default: 0)",
    )
    add("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest tokens that together have the probability P",
    )
    add(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="only tokens at least P times as likely as the likeliest",
    )
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="makes tokens that are in the text less likely if above 1",
    )
    add("--seed", type=int, help="of the random numbers (default: another one each time)")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )


def sampling_options(args: argparse.Namespace, seed: int | None) -> Any:
    """The options as :class:`llama_fast.generate.SamplingOptions`."""
    from llama_fast.generate import SamplingOptions

    return SamplingOptions(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=seed,
    )


def load(args: argparse.Namespace) -> Any:
    """The model and its tokenizer."""
    import torch

    from llama_fast._device import device_of
    from llama_fast.models.loading import load_model

    if args.max_new_tokens < 1:
        raise ValueError(f"max-new-tokens: expected a number >= 1, got {args.max_new_tokens}")
    if "" in args.stop:
        raise ValueError("stop: expected a text of at least one character, got ''")
    sampling_options(args, args.seed)  # says what is wrong before the model is read
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    device = device_of(args.device or "auto")
    model, tokenizer = load_model(args.model, args.tokenizer, dtype)
    return model.to(device), tokenizer
