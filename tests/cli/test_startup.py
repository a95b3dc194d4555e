"""The command line answers without torch, which takes seconds to import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama_fast.cli import main as cli
from llama_fast.cli.command import Command

SCRIPT = "import sys\nfrom llama_fast.cli.main import main\nsys.exit(main())\n"


def commands(command: Command = cli.LLAMA_FAST) -> list[list[str]]:
    """Return what is typed for each command and subcommand."""
    found = []
    for name in command.subcommands:
        found += [[name], *([name, *rest] for rest in commands(command.subcommand(name)))]
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the import of torch or numpy is an error."""
    folder = tmp_path_factory.mktemp("without_torch")
    for name in ("torch", "numpy"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    here = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{here}"}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("path", [[], *commands()], ids=" ".join)
def test_help_imports_no_torch(path: list[str], environment: dict[str, str]) -> None:
    done = run(environment, sys.executable, "-m", "llama_fast", *path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {' '.join(['llama-fast', *path])}")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        ([], 2),
        (["no-such-command"], 2),
        (["info", "--no-such-option"], 2),
        (["eval"], 2),
        (["data", "no-such-action"], 2),
        (["--limit", "line", "info"], 2),
        (["train", "missing.yaml"], 2),
    ],
)
def test_wrong_usage_imports_no_torch(
    arguments: list[str], code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "llama-fast"  # as pip writes it
    script.write_text(SCRIPT)
    done = run(environment, sys.executable, str(script), *arguments)
    assert done.returncode == code
    assert "was imported" not in done.stderr and "Traceback" not in done.stderr


def test_python_m_with_options_of_the_interpreter(environment: dict[str, str]) -> None:
    for options in (["-m", "llama_fast"], ["-mllama_fast"], ["-Bm", "llama_fast"]):
        done = run(environment, sys.executable, "-X", "utf8", *options, "info", "--help")
        assert done.returncode == 0, done.stderr


def test_any_other_program_imports_torch_at_once(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    done = run(environment, sys.executable, str(script), "--help")
    assert "torch was imported" in done.stderr


def test_a_command_uses_the_ops(tmp_path: Path) -> None:
    script = tmp_path / "llama-fast"
    script.write_text(SCRIPT)
    done = run(dict(os.environ, PYTHONPATH=os.getcwd()), sys.executable, str(script), "info")
    assert done.returncode == 0 and "linear_cross_entropy" in done.stdout, done.stderr
