"""`llama-fast chat`: talk with a model in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from llama_fast._terminal import show
from llama_fast.cli.generation_options import (
    add_model_options,
    add_sampling_options,
    load,
    sampling_options,
)

HELP = "talk with a model in the terminal"
COMMANDS = "/reset starts anew, /exit ends; Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    add_model_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument(
        "--chat-template",
        metavar="NAME",
        help="chatml, llama3, plain, a file, or Jinja source (default: the model's own)",
    )
    add_sampling_options(parser, max_new_tokens=1024)


def run(args: argparse.Namespace) -> int:
    """Read a line, answer it, until the end of input or /exit."""
    from llama_fast.data.chat import ChatTemplate

    model, tokenizer = load(args)
    if args.chat_template is None and tokenizer.chat_template is None:
        raise ValueError(
            "chat-template: expected chatml, llama3, plain or a file, for the model has no "
            "template of its own"
        )
    if args.chat_template is None:
        template = ChatTemplate.from_model(tokenizer.chat_template)
    else:
        template = ChatTemplate.from_name(args.chat_template)
    chat = Chat(model, tokenizer, template, args)
    person = sys.stdin.isatty()
    if person:
        import readline  # noqa: F401 (input() then has a history and can be edited)

        print(COMMANDS)
    while True:
        try:
            line = input("> " if person else "").strip()
        except EOFError:
            if person:
                print()
            return 0
        except KeyboardInterrupt:
            print(f"\n{COMMANDS}")
            continue
        if line in ("/exit", "/quit"):
            return 0
        if line == "/reset":
            chat.reset()
        elif line.startswith("/"):
            show(f"no such command: {line}; {COMMANDS}")
        elif line:
            chat.answer(line)


class Chat:
    """The turns so far. Keys and values of what they have in common with the next stay."""

    def __init__(self, model: Any, tokenizer: Any, template: Any, args: argparse.Namespace) -> None:
        from llama_fast.data.chat import end_ids, end_of_turn
        from llama_fast.generate import Engine

        self._engine = Engine(model, tokenizer, max_batch=1, keep=1)
        self._tokenizer, self._template, self._args = tokenizer, template, args
        self._turns = 0
        end, text = end_of_turn(template, tokenizer)
        self._stop = [*args.stop, *([text] if text else [])]
        self._stop_ids = [*end_ids(tokenizer), *([] if end is None else [end])]
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        system = self._args.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def answer(self, line: str) -> None:
        """Print the model's answer as it comes, and remember both."""
        from llama_fast.generate import GenerationRequest

        messages = [*self.messages, {"role": "user", "content": line}]
        tokens = self._template.prompt(messages, self._tokenizer)
        most = self._engine.model.config.max_seq_len
        if len(tokens) >= most:
            print(f"the chat is longer than the model's context of {most} tokens; {COMMANDS}")
            return
        seed = self._args.seed
        request = GenerationRequest(
            tokens,
            self._args.max_new_tokens,
            stop=self._stop,
            stop_ids=self._stop_ids,
            sampling=sampling_options(self._args, None if seed is None else seed + self._turns),
        )
        self._turns += 1
        said, reason = "", "stop"
        pieces = self._engine.stream([request])
        try:
            for piece in pieces:
                text = piece.text if said else piece.text.lstrip()
                said += text
                show(text, end="")
                if piece.result is not None:
                    reason = piece.result.finish_reason
        except KeyboardInterrupt:
            reason = "stopped"
        finally:
            pieces.close()
        print({"stop": "", "stopped": " [stopped]", "length": " [longest answer]"}[reason])
        self.messages = [*messages, {"role": "assistant", "content": said.rstrip()}]
