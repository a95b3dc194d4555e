"""`llama-fast generate`: continue a prompt, or each prompt of a file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_fast._format import counted
from llama_fast._reading import read_json_lines, read_lines
from llama_fast._terminal import show
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import (
    QUANTIZED_DTYPE,
    add_chat_template,
    add_device,
    add_dtype,
    add_model,
    add_sampling,
    add_tokenizer,
    add_trust_remote_code,
    first_messages,
    load_for_generation,
    sampling_options,
)

if TYPE_CHECKING:
    from llama_fast.generation import GenerationRequest, GenerationResult, Piece
    from llama_fast.tokenizers import Tokenizer


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
        chat = parser.add_argument_group("chat")
        chat.add_argument(
            "--chat",
            action="store_true",
            help="take each prompt as a message to an instruct model, and print its answer",
        )
        add_chat_template(chat)
        add_dtype(parser, quantized=QUANTIZED_DTYPE)
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
        _check_chat(args)
        places, prompts = zip(*_prompts(args), strict=True)
        model, tokenizer = load_for_generation(args)
        from llama_fast._energy import energy_text, find_meter
        from llama_fast.generation import Engine
        from llama_fast.generation.requests import check_length

        new_request = _new_request(args, tokenizer)
        requests = [new_request(n, text) for n, text in enumerate(prompts)]
        meter = find_meter(model.head_weight.device)
        engine = Engine(model, tokenizer, max_batch=args.batch, meter=meter)
        for place, request in zip(places, requests, strict=True):  # before any text is generated
            check_length(place, request.tokens, model.config.max_seq_len)
        begin = time.perf_counter()
        results = list(_show(args, prompts, engine.stream(requests)))
        seconds = time.perf_counter() - begin
        if sys.stderr.isatty():
            tokens = sum(len(result.tokens) for result in results)
            joules = sum(result.joules or 0.0 for result in results)
            energy = energy_text(meter, joules, tokens, len(results), "prompt")
            reused = f", {engine.reused:,} reused" if engine.reused else ""
            print(
                f"{counted(tokens, 'token')} after {engine.prefilled:,} of prompts{reused}: "
                f"{seconds:.1f} s, {tokens / seconds:.1f} tokens/s; energy: {energy}",
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


def _check_chat(args: argparse.Namespace) -> None:
    """Raise ValueError for options that contradict --chat or need it."""
    if args.chat and args.special:
        raise ValueError("--special: expected none with --chat, whose messages are plain text")
    for option, value in (("--system", args.system), ("--chat-template", args.chat_template)):
        if value is not None and not args.chat:
            raise ValueError(f"{option}: expected --chat beside it, got none")
    if args.chat and args.prompts is None and args.prompt is None:
        raise ValueError("prompt: expected a message with --chat, got none")


def _new_request(
    args: argparse.Namespace, tokenizer: Tokenizer
) -> Callable[[int, str], GenerationRequest]:
    """Return a function that makes the request for a prompt's number and text."""
    from llama_fast.data.chat import end_ids
    from llama_fast.generation import GenerationRequest
    from llama_fast.generation.chat import ChatFormat

    chat = ChatFormat(tokenizer, args.chat_template) if args.chat else None
    stop_ids = end_ids(tokenizer) if chat is None else chat.stop_ids

    def new_request(number: int, text: str) -> GenerationRequest:
        if chat is None:
            tokens = tokenizer.encode_prompt(text, special=args.special)
        else:
            tokens = chat.prompt([*first_messages(args), {"role": "user", "content": text}])
        return GenerationRequest(
            tokens,
            args.max_new_tokens,
            stop=[*args.stop, *(() if chat is None else chat.stop)],
            stop_ids=stop_ids,
            # A different seed for each, so that equal prompts get different texts.
            sampling=sampling_options(args, None if args.seed is None else args.seed + number),
        )

    return new_request


def _show(
    args: argparse.Namespace, prompts: Sequence[str], pieces: Iterator[Piece]
) -> Iterator[GenerationResult]:
    """Print the texts in order while they are generated; yield the result of each."""
    pending = [""] * len(prompts)  # text that is not printed yet
    results: dict[int, GenerationResult] = {}
    current = 0  # the prompt whose text is being printed
    begun = [not args.chat] * len(prompts)  # a template may leave space before the answer
    if not args.json:
        show(_heading(args, prompts, 0), end="")
    for piece in pieces:
        text = piece.text if begun[piece.index] else piece.text.lstrip()
        begun[piece.index] |= bool(text)
        pending[piece.index] += text
        if piece.result is not None:
            results[piece.index] = piece.result
            yield piece.result
        while current < len(prompts):
            if not args.json:
                show(pending[current], end="")
                pending[current] = ""
            if current not in results:
                break
            result = results.pop(current)
            if args.json:
                text = result.text.strip() if args.chat else result.text
                fields = {"index": current, "prompt": prompts[current], "text": text}
                fields |= {"tokens": len(result.tokens), "finish_reason": result.finish_reason}
                fields["joules"] = result.joules
                show(json.dumps(fields, ensure_ascii=False))
            current += 1
            if not args.json:
                more = current < len(prompts)
                show(f"\n\n{_heading(args, prompts, current)}" if more else "\n", end="")


def _heading(args: argparse.Namespace, prompts: Sequence[str], number: int) -> str:
    """Return what is printed before a text: its prompt, but not before a single answer."""
    if not args.chat:
        return prompts[number]
    return f"> {prompts[number]}\n" if len(prompts) > 1 else ""


COMMAND = Generate()
