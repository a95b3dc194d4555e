from __future__ import annotations

from pathlib import Path

import pytest

from llama_fast.eval.scenarios import scenario_tasks
from tests.paths import shared_data


@pytest.fixture(scope="session")
def data_dir() -> Path:
    return shared_data("scenarios").parent


@pytest.fixture(scope="session")
def tasks(data_dir):
    return scenario_tasks(data_dir)
