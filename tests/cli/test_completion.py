"""What a shell offers after `llama-fast`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llama_fast.cli.main import LLAMA_FAST, main


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "llama-fast.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash")
    assert bash is not None  # .ci/run is a bash script
    program = (
        f"source {script}; COMP_WORDS=(llama-fast {' '.join(map(repr, words))}); "
        f"COMP_CWORD={len(words)}; _shtab_llama_fast; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run([bash, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_commands_options_and_choices(script: Path) -> None:
    assert offered(script, "") >= set(LLAMA_FAST.subcommands)
    assert offered(script, "tok") == {"tokenize"}
    assert offered(script, "data", "") >= {"check", "plant"}
    assert "--max-new-tokens" in offered(script, "generate", "--max")
    assert offered(script, "train", "--optimizer.l") == {
        "--optimizer.lr",
        "--optimizer.lr-schedule",
    }
    assert offered(script, "export", "--to", "") == {"hf", "meta", "gguf"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    found = capsys.readouterr().out
    assert "llama-fast" in found and "max-new-tokens" in found
