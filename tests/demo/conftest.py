from pathlib import Path

import pytest

from llama_fast.data.fetch import FetchError, benchmark_path, smollm2_path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    try:
        return smollm2_path()
    except FetchError as error:
        pytest.skip(f"the model is not in the cache and there is no network: {error}")


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    try:
        return benchmark_path()
    except FetchError as error:
        pytest.skip(f"the questions are not in the cache and there is no network: {error}")
