"""Entry point of `llama-fast`: runs a command and turns its exceptions into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from llama_fast._limits import set_limits
from llama_fast._terminal import show, warnings_as_lines
from llama_fast._version import __version__
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode, code_of, message_of

PROG = "llama-fast"


class _LlamaFast(Command):
    name = PROG
    help = "fast attention and cross-entropy kernels, and a Llama stack on top"
    epilog = f"""`{PROG} COMMAND --help` describes a command.

Exit codes: 0 success; 1 negative result, such as a failed check, or internal error; 2 wrong usage
or bad input; 130 interrupted; 143 terminated.
"""
    subcommands: ClassVar[Mapping[str, str]] = {
        "info": "llama_fast.cli.info",
        "demo": "llama_fast.cli.demo",
        "bench": "llama_fast.cli.bench",
        "tokenize": "llama_fast.cli.tokenize",
        "data": "llama_fast.cli.data",
        "train": "llama_fast.cli.train",
        "plan": "llama_fast.cli.plan",
        "plot": "llama_fast.cli.plot",
        "export": "llama_fast.cli.export",
        "export-kernels": "llama_fast.cli.export_kernels",
        "eval": "llama_fast.cli.eval",
        "generate": "llama_fast.cli.generate",
        "chat": "llama_fast.cli.chat",
        "completion": "llama_fast.cli.completion",
    }

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
        # _take_limits reads it; it is declared here for the help.
        parser.add_argument(
            "--limit",
            action="append",
            metavar="NAME=VALUE",
            help="raise a limit on the work and memory that an untrusted file may take, such as "
            "line=1G; given before the command; see docs/limits.md",
        )


LLAMA_FAST = _LlamaFast()


def _take_limits(argv: list[str]) -> list[str]:
    """Set the limits that are given before the command; return the rest of the arguments."""
    given = []
    while argv and (argv[0] == "--limit" or argv[0].startswith("--limit=")):
        _, equals, value = argv.pop(0).partition("=")
        if not equals and not argv:
            raise ValueError("--limit: expected NAME=VALUE, got nothing")
        given.append(value if equals else argv.pop(0))
    set_limits(given)
    return argv


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit code; see `llama_fast.cli.exit_codes`. Bad input prints one line on standard error;
        LLAMA_FAST_DEBUG=1 shows the traceback instead.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    warnings_as_lines(PROG)
    try:
        code = LLAMA_FAST.main(_take_limits(arguments), PROG)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the output closed it (`llama-fast info | head -1`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.NEGATIVE
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except Exception as error:
        failure = code_of(error)
        if failure is None or os.environ.get("LLAMA_FAST_DEBUG") == "1":
            raise
        message = message_of(error, LLAMA_FAST.options_of(arguments))
        show(f"{PROG}: error: {message}", file=sys.stderr)
        _tell_torchrun(f"{PROG}: error: {message}")
        return failure


def _tell_torchrun(message: str) -> None:
    """Write the message to the file that `torchrun` shows at the end of its report.

    Without the file the report says that there is no traceback. Its form is that of
    torch.distributed.elastic.multiprocessing.errors.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return
    now = str(int(time.time()))
    content = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": now}}
    with contextlib.suppress(OSError):  # the message is printed in any case
        Path(path).write_text(json.dumps({"message": content}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
