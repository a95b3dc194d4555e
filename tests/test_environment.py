"""Environment variables with wrong values: one line at the start of a command, and at import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llama_fast._environment import check_environment
from llama_fast.cli.main import main
from llama_fast.ops.backends import library


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LLAMA_FAST_AUTOTUNE", "yes", "expected 0 or 1, got 'yes'"),
        ("LLAMA_FAST_DEBUG", "true", "expected 0 or 1, got 'true'"),
        ("LLAMA_FAST_CACHE_MB", "1G", "expected a whole number of MiB, got '1G'"),
        ("LLAMA_FAST_EMULATE_CUDA", "on", "expected 0, 1 or the number of an architecture"),
        ("LLAMA_FAST_LIMITS", "lines=1G", "expected NAME=VALUE with a NAME of json, line"),
    ],
)
def test_a_wrong_value(
    name: str,
    value: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        check_environment()
    assert main(["export", "nothing", "--to", "hf", "--out", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"llama-fast: error: {name}: {message}") and error.count("\n") == 1
    monkeypatch.setenv(name, "")
    check_environment()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LLAMA_FAST_BACKEND", "foo", "expected one of auto, cpu,"),
        ("LLAMA_FAST_BACKEND", "attention=foo", "backend for attention: expected one of"),
        ("LLAMA_FAST_ISA", "foo", "expected one of "),
    ],
)
def test_a_wrong_value_of_the_ops(name: str, value: str, message: str) -> None:
    if name == "LLAMA_FAST_ISA" and library.missing_reason is not None:
        pytest.skip(library.missing_reason)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, name: value}
        return subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True
        )

    options = ("export", "nothing", "--to", "hf", "--out", "nowhere")
    command = run("-m", "llama_fast", *options)
    assert command.returncode == 2 and command.stderr.count("\n") == 1
    assert command.stderr.startswith(f"llama-fast: error: {name}: {message}")
    program = run("-c", "import llama_fast")
    assert program.stderr.splitlines()[-1].startswith(f"ValueError: {name}: {message}")
    assert run("-m", "llama_fast", "export", "--help").returncode == 0
