"""The protocol of a command: its name, its options, and what it does.

Each command is a subclass of :class:`Command` in its own module, which has an instance of it as
`COMMAND`. These modules import no torch at their top level, so that `--help` is fast; `run`
imports what it needs.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import ClassVar

from llama_fast._environment import check_environment
from llama_fast._extras import require


class Command:
    """A command of `llama-fast`, or a subcommand of one.

    A command that does not define `run` is a group: one of its subcommands must be given.

    Attributes:
        name: name of the command as the user types it.
        help: a line for the list of commands.
        description: paragraphs above the options; `help` as a sentence if None.
        epilog: paragraphs below the options; indented lines are kept as they are.
        usage: replaces argparse's usage line; None keeps it.
        intermixed: whether positional arguments may stand between options.
        subcommands: name of each subcommand and the module that defines it.
        extra: name of the extra of llama_fast that installs what the command needs.
        packages: modules of that extra without which the command cannot run.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    description: ClassVar[str | None] = None
    epilog: ClassVar[str | None] = None
    usage: ClassVar[str | None] = None
    intermixed: ClassVar[bool] = False
    subcommands: ClassVar[Mapping[str, str]] = {}
    extra: ClassVar[str] = ""
    packages: ClassVar[Sequence[str]] = ()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options to a parser."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command with the parsed arguments.

        Returns:
            ``ExitCode.OK`` or ``ExitCode.NEGATIVE``.

        Raises:
            CommandError, or one of ``USER_ERRORS``: bad input; see `llama_fast.cli.exit_codes`.
        """
        raise NotImplementedError

    def parser(self, prog: str) -> argparse.ArgumentParser:
        """Return the parser of the command's arguments.

        Args:
            prog: the text that the user types to run the command, such as ``llama-fast eval``.
        """
        parser = argparse.ArgumentParser(
            prog=prog,
            usage=self.usage,
            description=self.description or f"{self.help[0].upper()}{self.help[1:]}.",
            formatter_class=HelpFormatter,
        )
        self.add_arguments(parser)
        commands = [self.subcommand(name) for name in self.subcommands]
        if self._is_group:
            entries = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
            for command in commands:
                entries.add_parser(command.name, help=command.help, add_help=False)
        parser.epilog = self.epilog
        if commands and not self._is_group:
            lines = [f"  {prog} {command.name} ...\n      {command.help}" for command in commands]
            parser.epilog = "\n".join(["subcommands:", *lines, *(["", self.epilog or ""])])
        return parser

    def parse(self, argv: Sequence[str], prog: str) -> argparse.Namespace:
        """Return the parsed arguments; exit with code 2 if argparse rejects them."""
        parser = self.parser(prog)
        return parser.parse_intermixed_args(argv) if self.intermixed else parser.parse_args(argv)

    def main(self, argv: Sequence[str], prog: str) -> int:
        """Run the subcommand that `argv` begins with, or this command; return the exit code."""
        if argv and argv[0] in self.subcommands:
            return self.subcommand(argv[0]).main(argv[1:], f"{prog} {argv[0]}")
        args = self.parse(argv, prog)
        _check_environment()  # after parsing: --help needs neither torch nor packages
        require(prog, self.extra, *self.packages)
        return self.run(args)

    def options_of(self, argv: Sequence[str]) -> dict[str, str]:
        """Return the options of the command that `argv` runs: name of the value -> as typed."""
        if argv and argv[0] in self.subcommands:
            return self.subcommand(argv[0]).options_of(argv[1:])
        parser = argparse.ArgumentParser(add_help=False)
        self.add_arguments(parser)
        return {a.dest: max(a.option_strings, key=len) for a in parser._actions if a.option_strings}

    def subcommand(self, name: str) -> Command:
        """Return a subcommand; its module is imported now."""
        command: Command = importlib.import_module(self.subcommands[name]).COMMAND
        return command

    @property
    def _is_group(self) -> bool:
        return type(self).run is Command.run


def _check_environment() -> None:
    """Raise ValueError if an environment variable of the package has a wrong value."""
    check_environment()
    if any(os.environ.get(name) for name in ("LLAMA_FAST_BACKEND", "LLAMA_FAST_ISA")):
        importlib.import_module("llama_fast.ops")  # checks them; it imports torch


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs to the terminal's width and keeps indented lines, such as examples."""

    def __init__(self, prog: str, **options: object) -> None:
        super().__init__(prog, max_help_position=28, **options)  # type: ignore[arg-type]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = []
        for paragraph in text.strip("\n").split("\n\n"):
            is_example = any(line.startswith(" ") for line in paragraph.splitlines())
            paragraphs.append(
                "\n".join(indent + line for line in paragraph.splitlines())
                if is_example
                else super()._fill_text(paragraph, width, indent)
            )
        return "\n\n".join(paragraphs)
