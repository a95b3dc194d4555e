"""The command line: which command runs, and what becomes of its errors."""

import argparse
import json
import os
import subprocess
import sys
import types

import pytest

import llama_fast
from llama_fast.cli import main as cli


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command `try N` that a test gives a body: `command.run = ...`."""
    module = types.ModuleType("command_for_tests")
    module.HELP = "a command for tests"  # type: ignore[attr-defined]
    module.add_arguments = lambda parser: parser.add_argument("n", type=int)  # type: ignore
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "try", module.__name__)
    monkeypatch.delenv("LLAMA_FAST_DEBUG", raising=False)
    return module


def raising(error: BaseException) -> object:
    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_info_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["llama_fast"] == llama_fast.__version__


def test_command_gets_its_arguments_and_sets_the_exit_code(command: types.ModuleType) -> None:
    command.run = lambda args: args.n + 1  # type: ignore[attr-defined]
    assert cli.main(["try", "6"]) == 7


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


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
    error: Exception, command: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run = raising(error)  # type: ignore[attr-defined]
    assert cli.main(["try", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("llama-fast: error: ") and err.count("\n") == 1
    assert "q: expected 4 dimensions" in err or "model.gguf" in err


def test_debug_shows_the_traceback(
    command: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.run = raising(ValueError("bad"))  # type: ignore[attr-defined]
    monkeypatch.setenv("LLAMA_FAST_DEBUG", "1")
    with pytest.raises(ValueError, match="bad"):
        cli.main(["try", "1"])


def test_mistakes_of_our_own_keep_their_traceback(command: types.ModuleType) -> None:
    command.run = raising(KeyError("x"))  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        cli.main(["try", "1"])


def test_interrupt_is_code_130(command: types.ModuleType) -> None:
    command.run = raising(KeyboardInterrupt())  # type: ignore[attr-defined]
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
