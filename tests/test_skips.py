"""A run says what it left out, and CI takes few reasons."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.paths import REPOSITORY
from tests.skips import need, summary

TESTS = """
import pytest

@pytest.mark.skip(reason="needs a GPU of the future")
def test_hardware(): pass

@pytest.mark.extra("no/such/file")
def test_extra(): assert False

def test_passes(): pass
"""
OTHER = """
@pytest.mark.parametrize("n", range(2))
def test_other(n): pytest.skip("somebody forgot it")
"""


def run(folder: Path, tests: str, *options: str, ci: str) -> tuple[int, str]:
    """Exit status and output of a run with this repository's hooks."""
    (folder / "conftest.py").write_text(
        "from tests.skips import *\n"
        "def pytest_collection_modifyitems(config, items): leave_extras_out(config, items)\n"
    )
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = extra(path): x\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        *options,
        str(folder),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["", "xdist"])
def test_one_line_says_what_was_left_out(tmp_path: Path, options: tuple[str, ...]) -> None:
    status, said = run(tmp_path, TESTS, *options, ci="true")
    assert status == 0, said
    line = "skipped: 1 needs a GPU; 1 of whole originals left out (LLAMA_FAST_TEST_DATA)"
    assert line in said.splitlines()[-2:], said


def test_ci_takes_no_other_reason(tmp_path: Path) -> None:
    status, said = run(tmp_path, TESTS + OTHER, ci="true")
    assert status == 1
    assert "2 need something else (somebody forgot it), 1 needs a GPU" in said
    assert "in CI this is no reason to skip a test: somebody forgot it" in said
    status, said = run(tmp_path, TESTS + OTHER, ci="")
    assert status == 0 and "2 need something else" in said


def test_reasons() -> None:
    assert need("needs a GPU, or TRITON_INTERPRET=1") == "a GPU"
    assert need("needs a package registry: x") is None
    assert summary(Counter(), 0) == "skipped: nothing"
