"""Options that several commands share, each spelled once."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from llama_fast.generation import SamplingOptions
    from llama_fast.models.decoder import Decoder
    from llama_fast.tokenizers import Tokenizer

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED_DTYPE = "bfloat16"  # in which `generate` and `chat` compute with quantized weights


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, a path or name that :func:`llama_fast.models.loading.locate` understands."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="Hugging Face folder or hub name, GGUF, Meta, llama2.c, a training run's folder, or "
        "smollm2 (SmolLM2-135M-Instruct, 93 MB)",
    )


def add_tokenizer(
    parser: argparse.ArgumentParser, besides: str = "byte", default: str | None = None
) -> None:
    """Add --tokenizer.

    Args:
        parser: gets the option.
        besides: help text on other values than a file and their meaning.
        default: default of the option; None is the model's own tokenizer.
    """
    own = "the model's own"
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        default=default,
        help=f"tokenizer.json, tokenizer.model, tok*.bin, .gguf, a folder with one of them, or "
        f"{besides} (default: {default or own})",
    )


def add_dtype(
    parser: argparse._ActionsContainer,
    *choices: str,
    default: str | None = None,
    quantized: str = "float32",
) -> None:
    """Add --dtype, the dtype of the weights.

    Args:
        parser: gets the option.
        choices: further values besides ``DTYPES``.
        default: the default, with which weights keep their stored dtype.
        quantized: for the help, dtype of weights that are stored quantized.
    """
    parser.add_argument(
        "--dtype",
        choices=(*choices, *DTYPES),
        default=default,
        help=f"dtype of the weights (default: as stored; {quantized} if they are quantized)",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add --device, a name that `device_of` understands."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)"
    )


def add_trust_remote_code(parser: argparse._ActionsContainer) -> None:
    """Add --trust-remote-code."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code from the model's folder or repository, with all your rights",
    )


def add_chat_template(parser: argparse._ActionsContainer) -> None:
    """Add --system and --chat-template, the message before a chat and the form of its prompts."""
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument(
        "--chat-template",
        metavar="NAME",
        help="chatml, llama3, plain, a file, or Jinja source (default: the model's own)",
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add --json; see :func:`tables`."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object; tables and progress go to standard error",
    )


@contextlib.contextmanager
def tables(args: argparse.Namespace) -> Iterator[None]:
    """Within the context, what is printed goes to standard error if --json was given."""
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        yield


def print_json(value: dict[str, Any]) -> None:
    """Print an object as JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def add_seed(
    parser: argparse._ActionsContainer, of: str, *, default: int | None = 0, shown: str = "0"
) -> None:
    """Add --seed.

    Args:
        parser: gets the option.
        of: help text: what the seed determines.
        default: default of the option.
        shown: the default in the help text.
    """
    parser.add_argument(
        "--seed", type=int, default=default, metavar="N", help=f"seed of {of} (default: {shown})"
    )


def add_out(
    parser: argparse._ActionsContainer,
    what: str,
    *,
    metavar: str = "DIR",
    default: Path | None = None,
    required: bool = False,
) -> None:
    """Add --out, a path to write to.

    Args:
        parser: gets the option.
        what: help text on what is written there and on the default.
        metavar, default, required: as in argparse.
    """
    parser.add_argument(
        "--out", type=Path, metavar=metavar, default=default, required=required, help=what
    )


def add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Add the options for sampling tokens and ending a text.

    Args:
        parser: gets the options.
        max_new_tokens: default of --max-new-tokens.
    """
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="maximum number of generated tokens (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token; larger values are more varied (default: 0)",
    )
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K most likely tokens")
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens with a total probability of P",
    )
    add(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="sample from tokens at least P times as likely as the most likely one",
    )
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="values above 1 make tokens that are in the text less likely",
    )
    add_seed(group, "sampling", default=None, shown="a different one each time")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )


def sampling_options(args: argparse.Namespace, seed: int | None) -> SamplingOptions:
    """Return the sampling options of the arguments, with another seed."""
    from llama_fast.generation import SamplingOptions

    return SamplingOptions(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=seed,
    )


def first_messages(args: argparse.Namespace) -> list[dict[str, str]]:
    """Return the messages that --system puts before a chat."""
    return [] if args.system is None else [{"role": "system", "content": args.system}]


def load_for_generation(args: argparse.Namespace) -> tuple[Decoder, Tokenizer]:
    """Return the model that the arguments name, on its device, and its tokenizer.

    Raises:
        ValueError: an option is out of its range. This is checked before the model is read.
    """
    from llama_fast._device import device_of
    from llama_fast._terminal import status
    from llama_fast.integrations.any_model import decoder_of, load_any
    from llama_fast.models.checkpoints import quantization_of
    from llama_fast.models.loading import locate

    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: expected at least 1, got {args.max_new_tokens}")
    if "" in args.stop:
        raise ValueError("--stop: expected a text of at least one character, got ''")
    sampling_options(args, args.seed)
    device_of(args.device or "auto")
    status(f"Loading {args.model}")
    path = locate(args.model, trust_remote_code=args.trust_remote_code)
    quantization = quantization_of(path)
    model, tokenizer = load_any(
        path,
        args.tokenizer,
        args.dtype or ("auto" if quantization is None else QUANTIZED_DTYPE),
        args.device,
        trust_remote_code=args.trust_remote_code,
    )
    if sys.stderr is not None and sys.stderr.isatty():
        print(_weights(model, quantization), file=sys.stderr)
    return decoder_of(model), tokenizer


def _weights(model: nn.Module, quantization: str | None) -> str:
    """Return the number, dtype and size of a model's weights as text."""
    weights = list(model.parameters())
    size = sum(weight.nbytes for weight in weights)
    dtype = str(weights[0].dtype).removeprefix("torch.")
    stored = "" if quantization is None else f" (stored as {quantization})"
    count = sum(weight.numel() for weight in weights)
    return f"{count / 1e6:,.1f} M weights in {dtype}{stored}, {size / 1e6:,.0f} MB"
