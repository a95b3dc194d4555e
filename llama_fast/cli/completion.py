"""`llama-fast completion`: a script with which a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode

# Metavars of arguments that are paths.
_PATHS = {"CONFIG", "DIR", "FILE", "JSON", "MODEL", "PATH", "RUN", "SHARDS", "SOURCE", "A", "B"}


class Completion(Command):
    """Prints a completion script."""

    name = "completion"
    help = "print a script that completes commands and options in a shell"
    epilog = """For bash, in ~/.bashrc:

  eval "$(llama-fast completion bash)"

For zsh, once:

  llama-fast completion zsh > "${fpath[1]}/_llama-fast"
"""
    extra: ClassVar[str] = "completion"
    packages: ClassVar[Sequence[str]] = ("shtab",)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")

    def run(self, args: argparse.Namespace) -> int:
        """Print the script."""
        import shtab

        from llama_fast.cli.main import LLAMA_FAST, PROG

        parser = argparse.ArgumentParser(prog=PROG)
        LLAMA_FAST.add_arguments(parser)
        _add_commands(LLAMA_FAST, parser)
        for each in _parsers(parser):
            for action in each._actions:
                if action.type is Path or action.metavar in _PATHS:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, args.shell))
        return ExitCode.OK


def _add_commands(group: Command, parser: argparse.ArgumentParser) -> None:
    """Add a parser for each of a group's commands, with all options."""
    entries = parser.add_subparsers(metavar="COMMAND")
    for name in group.subcommands:
        command = group.subcommand(name)
        its = entries.add_parser(name, help=command.help, add_help=True)
        command.add_arguments(its)
        if name in ("train", "plan"):
            _add_training_options(its)
        # `eval` has arguments and subcommands: argparse takes one or the other.
        if command.subcommands and not any(not a.option_strings for a in its._actions):
            _add_commands(command, its)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    from llama_fast.train.config_check import OPTIONS

    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file")
    for option in OPTIONS:
        parser.add_argument(f"--{option.replace('_', '-')}")


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                found += _parsers(choice)
    return found


COMMAND = Completion()
