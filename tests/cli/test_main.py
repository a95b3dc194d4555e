"""The command line: which command runs, and what becomes of its errors."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

import llama_fast
from llama_fast.cli import main as cli
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import CommandError, ExitCode


class Try(Command):
    """A command `try N` that a test gives a body."""

    name = "try"
    help = "a command for tests"
    body: ClassVar[Callable[[argparse.Namespace], int]]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("n", type=int)

    def run(self, args: argparse.Namespace) -> int:
        return type(self).body(args)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> type[Try]:
    module = types.ModuleType("command_for_tests")
    module.COMMAND = Try()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    subcommands = {**cli.LLAMA_FAST.subcommands, "try": module.__name__}
    monkeypatch.setattr(type(cli.LLAMA_FAST), "subcommands", subcommands)
    monkeypatch.delenv("LLAMA_FAST_DEBUG", raising=False)
    return Try


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_info_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["llama_fast"] == llama_fast.__version__


def test_command_gets_its_arguments_and_sets_the_exit_code(command: type[Try]) -> None:
    command.body = lambda args: args.n + 1
    assert cli.main(["try", "6"]) == 7


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.LLAMA_FAST.subcommands)


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["info", "--no-such-option"]])
def test_wrong_usage_is_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(argv)
    assert exit_.value.code == 2
    assert "usage: llama-fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [ValueError("q: expected 4\n dimensions"), FileNotFoundError(2, "No such file", "model.gguf")],
)
def test_bad_input_is_one_line_and_code_2(
    error: Exception, command: type[Try], capsys: pytest.CaptureFixture[str]
) -> None:
    command.body = raising(error)
    assert cli.main(["try", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("llama-fast: error: ") and err.count("\n") == 1
    assert "q: expected 4 dimensions" in err or "model.gguf" in err


def test_debug_shows_the_traceback(command: type[Try], monkeypatch: pytest.MonkeyPatch) -> None:
    command.body = raising(ValueError("bad"))
    monkeypatch.setenv("LLAMA_FAST_DEBUG", "1")
    with pytest.raises(ValueError, match="bad"):
        cli.main(["try", "1"])


def test_mistakes_of_our_own_keep_their_traceback(command: type[Try]) -> None:
    command.body = raising(KeyError("x"))
    with pytest.raises(KeyError):
        cli.main(["try", "1"])


def test_a_command_error_keeps_its_lines_and_its_code(
    command: type[Try], capsys: pytest.CaptureFixture[str]
) -> None:
    command.body = raising(CommandError("no file:\n  get it from there", ExitCode.NEGATIVE))
    assert cli.main(["try", "1"]) == 1
    assert capsys.readouterr().err == "llama-fast: error: no file:\n  get it from there\n"


def test_interrupt_is_code_130(command: type[Try]) -> None:
    command.body = raising(KeyboardInterrupt())
    assert cli.main(["try", "1"]) == 130


def test_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "llama_fast", "info"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def commands(command: Command = cli.LLAMA_FAST, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield what is typed for each command and subcommand."""
    for name in command.subcommands:
        yield (*path, name)
        yield from commands(command.subcommand(name), *path, name)


def test_every_command_has_one_module_and_one_name() -> None:
    def check(subcommands: Mapping[str, str]) -> None:
        for name, module in subcommands.items():
            command = importlib.import_module(module).COMMAND
            assert command.name == name
            assert command.help[0].islower() and not command.help.endswith(".")
            check(command.subcommands)

    check(cli.LLAMA_FAST.subcommands)
    assert ("eval", "compare") in list(commands())


@pytest.mark.parametrize("path", [(), *commands()], ids=" ".join)
def test_help_fits_the_terminal(
    path: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_:
        cli.main([*path, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {' '.join(['llama-fast', *path])}")
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_the_report_of_torchrun_ends_with_the_error(tmp_path: Path) -> None:
    """Two processes of a run with a bad option."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    options = ["--steps", "-3", "--device", "cpu", "--out", str(tmp_path / "run")]
    run = subprocess.run(
        [*launcher, "-m", "llama_fast", "train", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    *_, last, border = run.stderr.rstrip().splitlines()
    assert set(border) == {"="}
    assert last.split(" : ", 1)[1] == "llama-fast: error: steps: expected at least 1, got -3"
    assert "llama_fast/cli" not in run.stderr  # no traceback of ours
