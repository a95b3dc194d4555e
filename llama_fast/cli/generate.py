"""`llama-fast generate`: continue a prompt, or each prompt of a file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_fast._reading import read_json_lines, read_lines
from llama_fast._terminal import show
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import (
    add_device,
    add_dtype,
    add_model,
    add_sampling,
    add_tokenizer,
    add_trust_remote_code,
    load_for_generation,
    sampling_options,
)


class Generate(Command):
    """Continues prompts."""

    name = "generate"
    help = "continue a prompt, or the prompts of a file"
    intermixed = True  # the prompt may stand behind options

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        add_model(parser)
        add_tokenizer(parser)
        parser.add_argument(
            "prompt",
            metavar="PROMPT",
            nargs="?",
            help="text to continue; - reads standard input (default: the model's BOS token)",
        )
        parser.add_argument(
            "--prompts",
            type=Path,
            metavar="FILE",
            help="file with one prompt per line; a line of a .jsonl file is a string or an object "
            "with a field prompt",
        )
        parser.add_argument(
            "--special",
            action="store_true",
            help="encode the names of control tokens in a prompt as these tokens",
        )
        add_dtype(parser)
        add_device(parser)
        add_trust_remote_code(parser)
        add_sampling(parser, max_new_tokens=256)
        parser.add_argument(
            "--batch",
            type=int,
            default=16,
            metavar="N",
            help="texts generated in parallel (default: %(default)s)",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            help="print one JSON object per prompt; its text does not repeat the prompt",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Print each prompt with its continuation, in order."""
        if args.prompts is not None and args.prompt is not None:
            raise ValueError("prompt: expected none with --prompts, got one")
        if args.batch < 1:
            raise ValueError(f"--batch: expected at least 1, got {args.batch}")
        places, prompts = zip(*_prompts(args), strict=True)
        model, tokenizer = load_for_generation(args)
        from llama_fast.data.chat import end_ids
        from llama_fast.generation import Engine
        from llama_fast.generation.requests import check_length

        engine = Engine(model, tokenizer, max_batch=args.batch)
        ends = end_ids(tokenizer)
        requests = [_request(args, tokenizer, ends, n, text) for n, text in enumerate(prompts)]
        for place, request in zip(places, requests, strict=True):  # before any text is generated
            check_length(place, request.tokens, model.config.max_seq_len)
        begin = time.perf_counter()
        tokens = sum(_show(args, prompts, engine.stream(requests)))
        seconds = time.perf_counter() - begin
        if sys.stderr.isatty():
            reused = f", {engine.reused:,} reused" if engine.reused else ""
            print(
                f"{tokens:,} tokens after {engine.prefilled:,} of prompts{reused}: "
                f"{seconds:.1f} s, {tokens / seconds:.1f} tokens/s",
                file=sys.stderr,
            )
        return ExitCode.OK


def _prompts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the place and the text of each prompt."""
    if args.prompts is None:
        return [("prompt", sys.stdin.read() if args.prompt == "-" else args.prompt or "")]
    prompts = list(read_prompts(args.prompts))
    if not prompts:
        raise ValueError(f"{args.prompts}: expected at least one prompt, got none")
    return prompts


def read_prompts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place (``FILE:LINE``) and the text of each prompt of a file.

    Empty lines are skipped.

    Raises:
        ValueError: a line is not UTF-8, or is not a prompt in a .jsonl file; the message names file
            and line.
    """
    if path.suffix == ".jsonl":
        for place, value in read_json_lines(path, expected_type=None):
            prompt = value.get("prompt") if isinstance(value, dict) else value
            if not isinstance(prompt, str):
                raise ValueError(f'{place}: expected a string, or {{"prompt": a string}}')
            yield place, prompt
        return
    for number, line in enumerate(read_lines(path), 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8: {error.reason}") from None
        if text.strip():
            yield f"{path}:{number}", text.rstrip("\r\n")


def _request(
    args: argparse.Namespace, tokenizer: Any, ends: Sequence[int], number: int, text: str
) -> Any:
    from llama_fast.generation import GenerationRequest

    return GenerationRequest(
        tokenizer.encode_prompt(text, special=args.special),
        args.max_new_tokens,
        stop=args.stop,
        stop_ids=ends,
        # A different seed for each, so that equal prompts get different texts.
        sampling=sampling_options(args, None if args.seed is None else args.seed + number),
    )


def _show(args: argparse.Namespace, prompts: Sequence[str], pieces: Iterator[Any]) -> Iterator[int]:
    """Print the texts in order while they are generated; yield the number of tokens of each."""
    pending = [""] * len(prompts)  # text that is not printed yet
    results: dict[int, Any] = {}
    current = 0  # the prompt whose text is being printed
    if not args.json:
        show(prompts[0], end="")
    for piece in pieces:
        pending[piece.index] += piece.text
        if piece.result is not None:
            results[piece.index] = piece.result
            yield len(piece.result.tokens)
        while current < len(prompts):
            if not args.json:
                show(pending[current], end="")
                pending[current] = ""
            if current not in results:
                break
            result = results.pop(current)
            if args.json:
                fields = {"text": result.text, "tokens": len(result.tokens)}
                fields = {"index": current, "prompt": prompts[current], **fields}
                fields["finish_reason"] = result.finish_reason
                show(json.dumps(fields, ensure_ascii=False))
            current += 1
            if not args.json:
                show(f"\n\n{prompts[current]}" if current < len(prompts) else "\n", end="")


COMMAND = Generate()
