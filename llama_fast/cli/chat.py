"""`llama-fast chat`: talk with a model in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

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
        add_dtype(parser, quantized=QUANTIZED_DTYPE)
        add_device(parser)
        add_trust_remote_code(parser)
        add_chat_template(parser)
        add_sampling(parser, max_new_tokens=1024)

    def run(self, args: argparse.Namespace) -> int:
        """Read a line and answer it, until the end of the input or /exit."""
        chat = Chat(*load_for_generation(args), args)
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

    def __init__(self, model: Decoder, tokenizer: Tokenizer, args: argparse.Namespace) -> None:
        from llama_fast.generation import Engine
        from llama_fast.generation.chat import ChatFormat

        self._format = ChatFormat(tokenizer, args.chat_template)
        self._engine = Engine(model, tokenizer, max_batch=1, keep_finished=1)
        self._args, self._turns = args, 0
        self.reset()

    def reset(self) -> None:
        """Forget all turns."""
        self.messages = first_messages(self._args)

    def answer(self, line: str) -> None:
        """Print the model's answer while it is generated, and keep both turns."""
        from llama_fast.generation import GenerationRequest

        messages = [*self.messages, {"role": "user", "content": line}]
        tokens = self._format.prompt(messages)
        max_tokens = self._engine.model.config.max_seq_len
        if len(tokens) >= max_tokens:
            print(f"the chat is longer than the model's context of {max_tokens} tokens; {COMMANDS}")
            return
        seed = self._args.seed
        request = GenerationRequest(
            tokens,
            self._args.max_new_tokens,
            stop=[*self._args.stop, *self._format.stop],
            stop_ids=self._format.stop_ids,
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
