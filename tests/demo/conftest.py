from pathlib import Path

import pytest

from tests import paths


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return paths.smollm2()


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    return paths.benchmark_data()
