"""`llama-fast chat`: talk with a model in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from llama_fast.data import ChatTemplate
    from llama_fast.models.decoder import Decoder
    from llama_fast.tokenizers import Tokenizer

COMMANDS = "/reset starts a new conversation, /exit ends; Ctrl-C stops an answer"


class ChatCommand(Command):
    """Reads lines and answers them."""

    name = "chat"
    help = "talk with a model in the terminal"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        add_model(parser)
        add_tokenizer(parser)
        add_dtype(parser)
        add_device(parser)
        add_trust_remote_code(parser)
        parser.add_argument("--system", metavar="TEXT", help="system message")
        parser.add_argument(
            "--chat-template",
            metavar="NAME",
            help="chatml, llama3, plain, a file, or Jinja source (default: the model's own)",
        )
        add_sampling(parser, max_new_tokens=1024)

    def run(self, args: argparse.Namespace) -> int:
        """Read a line and answer it, until the end of the input or /exit."""
        from llama_fast.data.chat import ChatTemplate

        model, tokenizer = load_for_generation(args)
        if args.chat_template is not None:
            template = ChatTemplate.from_name(args.chat_template)
        elif tokenizer.chat_template is not None:
            template = ChatTemplate.from_model(tokenizer.chat_template)
        else:
            raise ValueError(
                "--chat-template: expected chatml, llama3, plain or a file, because the model "
                "has no template of its own"
            )
        chat = Chat(model, tokenizer, template, args)
        interactive = sys.stdin.isatty()
        if interactive:
            import readline  # noqa: F401 (gives input() a history and line editing)

            print(COMMANDS)
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                if interactive:
                    print()
                return ExitCode.OK
            except KeyboardInterrupt:
                print(f"\n{COMMANDS}")
                continue
            if line in ("/exit", "/quit"):
                return ExitCode.OK
            if line == "/reset":
                chat.reset()
            elif line.startswith("/"):
                show(f"no such command: {line}; {COMMANDS}")
            elif line:
                chat.answer(line)


class Chat:
    """A conversation. The keys and values of the turns so far stay in the engine's cache."""

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, template: ChatTemplate, args: argparse.Namespace
    ) -> None:
        from llama_fast.data.chat import end_ids, end_of_turn
        from llama_fast.generation import Engine

        self._engine = Engine(model, tokenizer, max_batch=1, keep_finished=1)
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
        """Print the model's answer while it is generated, and keep both turns."""
        from llama_fast.generation import GenerationRequest

        messages = [*self.messages, {"role": "user", "content": line}]
        tokens = self._template.prompt(messages, self._tokenizer)
        max_tokens = self._engine.model.config.max_seq_len
        if len(tokens) >= max_tokens:
            print(f"the chat is longer than the model's context of {max_tokens} tokens; {COMMANDS}")
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
        answer, reason = "", "stop"
        pieces = self._engine.stream([request])
        try:
            for piece in pieces:
                text = piece.text if answer else piece.text.lstrip()
                answer += text
                show(text, end="")
                if piece.result is not None:
                    reason = piece.result.finish_reason
        except KeyboardInterrupt:
            reason = "stopped"
        finally:
            pieces.close()
        print(
            {"stop": "", "stopped": " [stopped]", "length": " [--max-new-tokens reached]"}[reason]
        )
        self.messages = [*messages, {"role": "assistant", "content": answer.rstrip()}]


COMMAND = ChatCommand()
