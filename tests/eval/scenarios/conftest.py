from __future__ import annotations

from pathlib import Path

import pytest

from llama_fast.eval.scenarios import scenario_tasks
from tests.paths import mirror, original


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return mirror()


@pytest.fixture(scope="session")
def whole_dir() -> Path:
    """The data as their authors publish them, for tests marked `extra`."""
    return original("scenarios").parent


@pytest.fixture(scope="session")
def tasks(data_dir):
    return scenario_tasks(data_dir)
