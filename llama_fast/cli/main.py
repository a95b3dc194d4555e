"""Entry point of `llama-fast`: finds the command, and turns what bad input raises into one line.

Other errors, which are faults of this package or of another one, end in a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from llama_fast._limits import set_limits
from llama_fast._terminal import neutral_warnings, show
from llama_fast._version import __version__

# Command -> module with HELP, add_arguments(parser) and run(args) -> exit code; or with HELP and
# main(argv) -> exit code, which has a parser of its own. A module is imported only when its command
# is asked for, or to list all of them.
COMMANDS = {
    "info": "llama_fast.cli.info",
    "demo": "llama_fast.cli.demo",
    "bench": "llama_fast.cli.bench",
    "tokenize": "llama_fast.cli.tokenize",
    "data": "llama_fast.cli.data",
    "train": "llama_fast.cli.train",
    "plan": "llama_fast.cli.plan",
    "plot": "llama_fast.cli.plot",
    "export": "llama_fast.cli.export",
    "eval": "llama_fast.cli.eval",
    "generate": "llama_fast.cli.generate",
    "chat": "llama_fast.cli.chat",
}

# What bad input raises: a wrong value, a file that is not there, an extra that is not installed, a
# loss that is no number, a model that does not fit.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)


def _parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama-fast",
        description="Fast attention and cross-entropy kernels, and a Llama stack on top.",
    )
    parser.add_argument("--version", action="version", version=f"llama-fast {__version__}")
    parser.add_argument(
        "--limit",
        action="append",
        metavar="NAME=VALUE",
        help="raise what files of others may take, such as line=1G; see docs/limits.md",
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name in names:
        module = importlib.import_module(COMMANDS[name])
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        if hasattr(module, "add_arguments"):
            module.add_arguments(sub)
        sub.set_defaults(module=module)
    return parser


def _take_limits(argv: list[str]) -> list[str]:
    """Set the limits that stand before the command; the rest of the arguments."""
    given = []
    while argv and (argv[0] == "--limit" or argv[0].startswith("--limit=")):
        _, equals, value = argv.pop(0).partition("=")
        if not equals and not argv:
            raise ValueError("limit: expected NAME=VALUE behind --limit, got nothing")
        given.append(value if equals else argv.pop(0))
    set_limits(given)
    return argv


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit code: 0, what the command returned, 2 for bad input, 130 when interrupted.
        Bad input prints one line; LLAMA_FAST_DEBUG=1 shows the traceback instead.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    neutral_warnings()
    try:
        argv = _take_limits(argv)
        asked = [argv[0]] if argv and argv[0] in COMMANDS else list(COMMANDS)
        own = importlib.import_module(COMMANDS[asked[0]]) if len(asked) == 1 else None
        if own is not None and hasattr(own, "main"):
            code = int(own.main(argv[1:]))
        else:
            args = _parser(asked).parse_args(argv)
            module: ModuleType = args.module
            code = int(module.run(args))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output left (`llama-fast info | head -1`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("llama-fast: interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if os.environ.get("LLAMA_FAST_DEBUG") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        show(f"llama-fast: error: {message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
