"""Readers of files that others make, fed with some hundred changed ones; `make fuzz` is longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.readers import TARGETS
from tests.paths import REPOSITORY

INPUTS = {"tokenizer-json": 20}  # each starts a process
GROUPS = sorted({target.group for target in TARGETS.values()})


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(tmp_path: Path, name: str) -> None:
    """What is changed has to be what the reader takes, or it fails at the first byte."""
    for number, content in enumerate(TARGETS[name].seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        TARGETS[name].read(folder, content)


@pytest.mark.parametrize("group", GROUPS)
def test_changed_files_are_refused_in_one_line(group: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", "--group", group,
               "--inputs", str(INPUTS.get(group, 120))]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
