"""An option that several commands have is spelled and described the same way in each."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import pytest

from llama_fast.cli.command import Command
from llama_fast.cli.main import LLAMA_FAST
from llama_fast.cli.train import read_config

# Options of one name with two meanings, each for a reason.
TWO_MEANINGS = {
    "--limit",  # of untrusted files, before the command; of questions, as in lm-eval
    "--out",  # a folder or a file
}


def commands(command: Command, name: str) -> Iterator[tuple[str, Command]]:
    yield name, command
    for sub in command.subcommands:
        yield from commands(command.subcommand(sub), f"{name} {sub}")


def options() -> dict[str, dict[str, argparse.Action]]:
    """Option -> command -> its action; those of `train` come from its configuration."""
    found: dict[str, dict[str, argparse.Action]] = defaultdict(dict)
    for name, command in commands(LLAMA_FAST, "llama-fast"):
        for action in command.parser(name)._actions:
            for option in action.option_strings:
                found[option][name] = action
    return found


OPTIONS = options()


def test_names_have_dashes() -> None:
    typed = [o for o, by_command in OPTIONS.items() if set(by_command) - {"llama-fast train"}]
    assert [option for option in typed if "_" in option] == []


@pytest.mark.parametrize("option", sorted(set(OPTIONS) - TWO_MEANINGS - {"-h", "--help"}))
def test_one_meaning(option: str) -> None:
    by_command = {n: a for n, a in OPTIONS[option].items() if n != "llama-fast train"}
    if len(by_command) > 1 and option != "--device":  # `bench` has a choice of two
        assert len({action.metavar for action in by_command.values()}) == 1
        assert len({action.type for action in by_command.values()}) == 1


def test_dtype_is_precision() -> None:
    for option in ("--dtype", "--precision"):
        assert read_config([option, "bfloat16"]).precision == "bfloat16"
        assert read_config([f"{option}=bfloat16"]).precision == "bfloat16"
